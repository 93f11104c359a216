"""A warm kernel is as good as a new one, and faster."""

import pytest

from qwenlab.execution import engine
from qwenlab.execution.engine import release
from tests.execution.conftest import printed

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started


@pytest.fixture
def two(run):
    """Run some code, then other code in the same kernel; return the output of the second."""

    def two(first: str, second: str, **settings):
        before, after = run(first), run(second, **settings)
        count = [each.metadata.papermill["qwenlab"]["runs_in_kernel"] for each in (before, after)]
        assert count[1] == count[0] + 1
        return printed(after)

    return two


CHANGES = """
import os, sys, random, warnings, logging
import numpy as np, pandas as pd, torch, transformers, xarray as xr, matplotlib.pyplot as plt
leftover = 1
os.chdir("/")
sys.path.insert(0, "/nowhere")
sys.argv.append("more")
warnings.simplefilter("error")
logging.root.setLevel(1)
np.seterr(all="raise")
np.set_printoptions(precision=1)
pd.options.display.float_format = "{:.1f}".format
xr.set_options(display_width=20)
torch.set_num_threads(1 + torch.get_num_threads() % 2)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.set_float32_matmul_precision("medium")
torch.set_default_device("meta")
transformers.logging.set_verbosity_error()
plt.rcParams["axes.grid"] = True
plt.switch_backend("svg")
plt.figure()
get_ipython().events.register("pre_run_cell", lambda info: print("left"))
"""

LOOK = """
import os, sys, random, warnings, logging
import numpy as np, pandas as pd, torch, transformers, xarray as xr, matplotlib.pyplot as plt
print("leftover" in dir(), "more" in sys.argv, os.getcwd(), "/nowhere" in sys.path)
print("error" in [each[0] for each in warnings.filters], logging.root.level)
print(np.geterr()["over"], np.get_printoptions()["precision"], pd.options.display.float_format)
print(xr.get_options()["display_width"], torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
print(torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.get_default_device())
print(transformers.logging.get_verbosity(), plt.rcParams["axes.grid"], plt.get_fignums(), plt.get_backend())
print(random.random(), np.random.rand(), torch.rand(1).item())
"""


def test_nothing_of_a_notebook_is_left_for_the_next(two, run):
    cold = printed(run(LOOK, name="fresh", warm=False))
    assert two(CHANGES, LOOK) == cold
    assert cold.startswith("False False")


def test_an_environment_variable_costs_the_kernel(run):
    release()
    changed = run("import os; os.environ['LEFT'] = '1'; os.environ['GIVEN'] = '2'", environment={"GIVEN": "1"})
    assert changed.metadata.papermill["qwenlab"]["changed"] == ["environment: LEFT"]
    after = run("import os; print('LEFT' in os.environ, 'GIVEN' in os.environ)")
    assert printed(after) == "False False"
    assert after.metadata.papermill["qwenlab"]["runs_in_kernel"] == 1


def test_a_variable_that_is_set_for_a_notebook_is_not_there_for_the_next(run):
    look = "import os; print(os.environ.get('GIVEN'))"
    given = run(f"{look}; os.environ['GIVEN'] = '2'", environment={"GIVEN": "1"})
    after = run(look)
    assert [printed(each) for each in (given, after)] == ["1", "None"]
    counts = [each.metadata.papermill["qwenlab"]["runs_in_kernel"] for each in (given, after)]
    assert counts[1] == counts[0] + 1


def test_each_has_its_seed(run):
    draws = "import numpy as np; print(np.random.rand())"
    printed_by_seed = [printed(run(draws, seed=seed)) for seed in (1, 2, 1)]
    assert printed_by_seed[0] == printed_by_seed[2] != printed_by_seed[1]


def test_a_module_in_the_notebooks_folder_is_read_again(two, tmp_path):
    (tmp_path / "helper.py").write_text("value = 1")
    change = f"import helper, pathlib; pathlib.Path({str(tmp_path / 'helper.py')!r}).write_text('value = 22')"
    assert two(change, "import helper; print(helper.value)") == "22"


def test_what_is_left_running_costs_the_kernel(run):
    release()
    start = "import threading, time; threading.Thread(target=time.sleep, args=(9,), name='worker', daemon={}).start()"
    daemon = run(start.format(True))
    assert daemon.metadata.papermill["qwenlab"]["left_running"] == ["worker"]
    left = run(start.format(False))
    assert left.metadata.papermill["qwenlab"]["left_running"] == ["worker"]
    assert run("1").metadata.papermill["qwenlab"]["runs_in_kernel"] == 1


def test_a_kernel_is_replaced_after_its_lifetime(run, monkeypatch):
    release()
    monkeypatch.setattr(engine, "LIFETIME", 2)
    assert [run("1").metadata.papermill["qwenlab"]["runs_in_kernel"] for _ in range(3)] == [1, 2, 1]


def test_a_kernel_that_has_grown_is_replaced(run, monkeypatch):
    release()
    monkeypatch.setattr(engine, "GROWTH", 50 * 2**20)
    run("1")
    leak = "import builtins; builtins.leak = bytearray(b'x') * (100 * 2**20)"
    assert run(leak).metadata.papermill["qwenlab"]["runs_in_kernel"] == 2
    assert run("1").metadata.papermill["qwenlab"]["runs_in_kernel"] == 1


OPEN = (
    'import qwenlab as ql\nckpt = ql.open("toy-dense")\nprint(id(ckpt), float(next(ckpt.model.parameters()).sum()))\n'
)


class TestTheCheckpoint:
    def test_is_read_once(self, run):
        release()
        used = [run(OPEN).metadata.papermill["qwenlab"] for _ in range(3)]
        assert [each["loads"] for each in used] == [1, 0, 0]
        assert [each["reopened"] for each in used] == [[], [], []]

    @pytest.mark.parametrize(
        "change",
        [
            "import torch\nwith torch.no_grad(): next(ckpt.model.parameters())[0] += 1",
            "next(ckpt.model.parameters()).data = next(ckpt.model.parameters()).data + 1",
            "ckpt.model.train()",
            "ckpt.model.model.layers[0].register_forward_hook(lambda *args: None)",
            "ckpt.tokenizer.padding_side = 'left' if ckpt.tokenizer.padding_side == 'right' else 'right'",
            "ckpt.model.config._attn_implementation = 'eager'",
            "ckpt.mtp.requires_grad_(False)",
        ],
    )
    def test_that_was_changed_is_read_again(self, run, change):
        first = run(OPEN)
        assert run(OPEN + change).metadata.papermill["qwenlab"]["loads"] == 0
        after = run(OPEN)
        assert after.metadata.papermill["qwenlab"]["reopened"] == ["toy-dense"]
        assert after.metadata.papermill["qwenlab"]["loads"] == 1
        assert printed(after).split()[1] == printed(first).split()[1]

    def test_opened_twice_in_one_notebook_is_two(self, run):
        run(OPEN)
        twice = run(OPEN, OPEN)
        assert twice.metadata.papermill["qwenlab"]["loads"] == 1
        assert len({line.split()[0] for line in printed(twice).splitlines()}) == 2


def test_results_are_those_of_a_cold_run_bit_for_bit(run):
    reads = (
        "import torch, qwenlab as ql\n"
        'ckpt = ql.open("toy-moe")\n'
        "tokens = torch.randint(0, 200, (2, 40))\n"
        "with torch.no_grad(), ql.watch(ckpt, *ql.probes.defaults(ckpt)) as seen:\n"
        "    out = ckpt.model(tokens).logits\n"
        "half = ql.stats.half_life(seen.recording())['half_life_mean_log']\n"
        "print(out.double().sum().item().hex(), half.values.tobytes().hex())\n"
    )
    cold = printed(run(reads, seed=3, warm=False))
    run("import torch; torch.set_num_threads(2); torch.rand(3)", OPEN)
    assert [printed(run(reads, seed=3)) for _ in range(2)] == [cold, cold]
