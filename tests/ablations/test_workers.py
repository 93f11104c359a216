"""Sweeps over several processes: the scores of one process, bit for bit, and the same errors."""

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from qwenlab import interventions
from qwenlab.ablations import workers
from qwenlab.ablations.ablation import Ablation
from qwenlab.ablations.controls import controls
from qwenlab.ablations.sweep import sweep
from qwenlab.ablations.units import units
from qwenlab.errors import BadArgument, CannotIntervene, WorkerDied
from qwenlab.interventions.session import intervene
from qwenlab.tasks import task_batches
from tests.ablations.test_sweep import some


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 100])
def test_bit_for_bit_those_of_one_process(moe, tasks, tmp_path, batch_size):
    ablations = some(moe)
    how = dict(batch_size=batch_size, progress=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = sweep(moe, ablations, tasks, **how)
    torch.set_num_threads(before)
    two = sweep(moe, ablations, tasks, workers=2, resume=tmp_path / "kept", **how)
    assert two.drop_attrs().identical(one.drop_attrs())
    assert two.attrs["layers_run"] == one.attrs["layers_run"]
    assert sweep(moe, ablations, tasks, resume=tmp_path / "kept", **how).drop_attrs().identical(one.drop_attrs())


def test_every_ablation_of_every_batch_is_in_one_job(moe, tasks):
    mixers = units(moe)
    ablations = [*mixers, *units(moe, "mlp"), *controls(mixers, mixers, number=2)]
    for size, missing in ((1, [0, 3, 5, 9]), (2, range(len(ablations))), (100, range(len(ablations)))):
        batches = list(task_batches(moe, tasks, batch_size=size))
        jobs = list(workers._jobs(ablations, [(batch, list(missing)) for batch in batches], 2))
        assert len(jobs) == (len(batches) if len(batches) >= 4 else 2 * len(batches))
        for batch in batches:
            own = [job.indices for job in jobs if job.batch is batch]
            assert sorted(index for indices in own for index in indices) == list(missing)
            run = [{ablations[index].intervention for index in indices} for indices in own]
            assert sum(map(len, run)) == len(set.union(*run))  # none runs twice


@pytest.mark.slow
def test_an_error_of_a_worker_is_that_of_one_process(moe, tasks):
    broken = units(moe, intervention=lambda name: interventions.Noise(f"{name}.decay"), layers=[0])
    with pytest.raises(CannotIntervene) as here:
        sweep(moe, broken, tasks, progress=False)
    with pytest.raises(CannotIntervene) as there:
        sweep(moe, broken, tasks, workers=2, progress=False)
    assert str(there.value) == str(here.value)


class Deadly(interventions.Zero):
    """Ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error(moe, tasks):
    deadly = [replace(each, interventions=(Deadly(each.parts[0]),)) for each in units(moe)]
    with pytest.raises(WorkerDied, match=r"ended with code 3 before its ablations were done\.\nThe usual cause is mem"):
        sweep(moe, deadly, tasks, workers=2, progress=False)


INTERRUPTED = """
import sys, time, warnings

sys.path.insert(0, sys.argv[3])
import torch
import qwenlab as ql
from tests.ablations.conftest import drawn_tasks
from tests.ablations.test_sweep import some, sweep

if __name__ == "__main__":
    warnings.simplefilter("error", ql.errors.InterruptedWarning)
    ckpt = ql.open(sys.argv[1])
    import qwenlab.ablations.resume as kept
    put = kept.ScoreTable.put

    def announced(self, found):
        put(self, found)
        if self.done.sum() == 12:
            print("begun", flush=True)
            time.sleep(60)

    kept.ScoreTable.put = announced
    try:
        sweep(ckpt, some(ckpt), drawn_tasks(), batch_size=1, workers=2, resume=sys.argv[2], progress=False)
    except (ql.errors.InterruptedWarning, KeyboardInterrupt) as error:
        print(type(error).__name__)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_what_is_done(moe, tasks, tmp_path, request):
    kept = tmp_path / "kept"
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    command = [sys.executable, str(script), moe.facts.source, str(kept), str(request.config.rootpath)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout.readline() == "begun\n"
        os.killpg(running.pid, signal.SIGINT)
        assert running.stdout.read() in ("InterruptedWarning\n", "KeyboardInterrupt\n")
        assert running.wait(timeout=60) == 0
    with np.load(kept) as held:
        assert 12 <= held["done"].sum() < held["done"].size
    again = sweep(moe, some(moe), tasks, batch_size=1, resume=kept, progress=False)
    assert again.drop_attrs().identical(sweep(moe, some(moe), tasks, batch_size=1, progress=False).drop_attrs())


def test_what_workers_cannot_have_is_refused(moe, tasks, opened):
    mixers = units(moe)
    with intervene(moe, interventions.Scale("layers.1.mlp", by=0.5)):
        moe.model(torch.tensor([[1, 2]]))
        with pytest.raises(BadArgument, match=r"sweep\(workers=\.\.\.\): Scale\(.+\) is active.*\nGive workers=1"):
            sweep(moe, mixers, tasks, workers=2, progress=False)
    with pytest.raises(
        BadArgument, match=r"sweep\(workers=\.\.\.\): the model in memory is no longer that of its files"
    ):
        workers.Opening.of(replace(moe, as_opened="another"))
    with pytest.raises(BadArgument, match=r"the files in .+ have changed since the checkpoint was opened"):
        workers._opened(replace(workers.Opening.of(moe), fingerprint="another"))

    class Local(interventions.Zero):
        pass

    local = [Ablation("local", (Local("layers.0.mixer"),), "mixer", ("layers.0.mixer",), 0, "", 0)]
    with pytest.raises(BadArgument, match=r"these ablations cannot be sent to another process \(.+Local.+\)"):
        sweep(moe, local, tasks, workers=2, progress=False)


def test_an_error_that_cannot_be_sent_keeps_its_words():
    class Unknown(Exception):
        pass

    with pytest.raises(RuntimeError, match="Unknown: why"):
        raise pickle.loads(workers._sendable(Unknown("why")))
