"""Hidden states that wait: what is counted, what goes to files and comes back, and a disk without room."""

import shutil

import pytest
import torch

from qwenlab.capture.waiting import WaitingTensors
from qwenlab.errors import DiskFull


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_only_memory_that_nobody_else_uses_is_freed(tmp_path, mode):
    with mode(), WaitingTensors(0, tmp_path) as waiting:
        alone, shared, mask = torch.arange(6.0) + 1, torch.arange(8.0) + 1, torch.ones(2)
        view = shared[2:]
        waiting.put("call", [alone, shared], [mask, mask])
        assert (waiting.in_memory, waiting.in_files) == (8 * 4 + 2 * 4, 6 * 4)
        assert alone.untyped_storage().nbytes() == 0
        waiting.take("call")
        assert (waiting.in_memory, waiting.in_files) == (0, 0)
        assert torch.equal(alone, torch.arange(6.0) + 1)
        assert torch.equal(view, torch.arange(2.0, 8) + 1)
    assert not list(tmp_path.iterdir())


def test_calls_that_wait_first_stay_in_memory(tmp_path):
    with WaitingTensors(100, tmp_path) as waiting:
        states = [torch.full((n,), float(n)) for n in (10, 20, 5, 15)]
        for _ in range(2):
            for number, state in enumerate(states):
                waiting.take(number)
                assert (state == len(state)).all()
                waiting.put(number, [state], [])
            assert [state.untyped_storage().nbytes() > 0 for state in states] == [True, False, True, False]
            assert (waiting.in_memory, waiting.in_files) == (60, 140)


def test_a_full_disk_is_an_error_before_anything_is_freed(tmp_path, monkeypatch):
    state = torch.ones(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(5000, 2000, 3000))
    with WaitingTensors(0, tmp_path) as waiting:
        with pytest.raises(DiskFull, match=rf"4,000 bytes .* {tmp_path}: 3,000 bytes are free"):
            waiting.put("call", [state], [])
        assert len(state.untyped_storage()) == 4000
    with WaitingTensors(0, tmp_path / "missing") as waiting, pytest.raises(DiskFull, match="missing"):
        waiting.put("call", [state], [])
