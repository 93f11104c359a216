"""With flash-linear-attention installed, models run on the CPU and give exactly the same numbers as without it."""

import json
import os
import subprocess
import sys

import pytest


def run(*how):
    """The results of `tests.fla.on_cpu`, in a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.fla.on_cpu", *how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def here():
    return run()


@pytest.fixture(scope="module")
def without():
    return run("without")


def test_logits_gradients_edits_scores_and_decoded_texts_are_those_without_it(here, without):
    assert here["found"] == without["found"]
    assert here["found"]["verdicts"] == ["lossless", "lossless"]


def test_the_kernel_that_ran_is_named(here):
    modeling = "transformers.models.{0}.modeling_{0}.torch_chunk_gated_delta_rule".format
    assert here["found"]["kernel"] == here["found"]["kernel of decoding"] == modeling("qwen3_5")
    assert here["found"]["plain kernel"] == modeling("qwen3_5_moe")


def test_a_plain_model_runs_in_blocks_only(here, without):
    """Outside the blocks, Triton rejects the model as before."""
    assert all(here["outside"])
    assert not any(without["outside"])
