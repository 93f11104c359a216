"""On an accelerator the default probes never make the host wait: no value is read there, and nothing is copied."""

import subprocess
import sys

import pytest
import torch

from qwenlab.capture.tokens import NEVER
from qwenlab.probes.attention import distance_edges
from qwenlab.probes.bins import DISTANCE_EDGES
from tests.probes.without_host import CONTROLS


def run(*control):
    command = [sys.executable, "-m", "tests.probes.without_host", *control]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_default_probes_read_nothing_on_the_host():
    ran = run()
    assert ran.returncode == 0 and ran.stdout == "nothing was read on the host\n", ran.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("control", CONTROLS)
def test_a_probe_that_does_is_noticed(control):
    ran = run(control)
    assert ran.returncode and "nothing was read" not in ran.stdout
    expected = ("DataDependentOutputException", "a tensor moves from elsewhere to cpu", "Could not run 'aten::empty")
    assert any(name in ran.stderr for name in expected), ran.stderr[-2000:]


def test_the_edges_of_distances_are_those_of_the_table():
    assert distance_edges(torch.device("cpu")).tolist() == [*DISTANCE_EDGES, NEVER]
