"""The benchmark of streamed checkpoints: what it counts, what its ratios are of, and that every part runs."""

import json
import sys
import time

import pytest

import qwenlab as ql
from benchmarks import streaming
from benchmarks.cold_files import PAGE, bytes_from_disk, cached_bytes, drop, sequential_speed
from benchmarks.watched_process import run_watched

GIB = 2**30


class TestColdFiles:
    @pytest.fixture
    def file(self, tmp_path):
        """A file of 300 pages that is in memory."""
        file = tmp_path / "file"
        file.write_bytes(bytes(300 * PAGE))
        return file

    @pytest.fixture
    def cold(self, file):
        try:
            drop([file])
        except OSError:
            pytest.skip("the file system of temporary files is in memory")
        return file

    def test_what_was_written_is_in_memory(self, file):
        assert cached_bytes(file) == 300 * PAGE

    def test_nothing_stays_in_memory_and_reads_are_counted(self, cold):
        assert cached_bytes(cold) == 0
        before = bytes_from_disk()
        cold.read_bytes()
        assert bytes_from_disk() - before >= 300 * PAGE
        assert cached_bytes(cold) == 300 * PAGE

    def test_the_speed_is_that_of_reading_and_leaves_files_cold(self, cold):
        before = bytes_from_disk()
        began = time.perf_counter()
        speed = sequential_speed([cold, cold])
        assert speed > 300 * PAGE / (time.perf_counter() - began)
        assert bytes_from_disk() - before >= 300 * PAGE
        assert cached_bytes(cold) == 0

    def test_a_file_that_stays_in_memory_is_an_error(self, cold, monkeypatch):
        monkeypatch.setattr("benchmarks.cold_files.cached_bytes", lambda path: 100 * PAGE)
        with pytest.raises(OSError, match=r"bytes stay in memory; close what maps it, or choose a --scratch"):
            drop([cold])


def test_as_many_layers_as_the_disk_has_room_for():
    whole = 2 * ql.anatomy("Qwen3.6-27B").total
    assert streaming.deepest("Qwen3.6-27B", whole + 5 * GIB) == 64
    assert streaming.deepest("Qwen3.6-27B", whole) == 56  # 4 GiB stay free, and a layer has 0.7 GiB
    with pytest.raises(streaming.typer.BadParameter, match="bytes free: choose another --scratch"):
        streaming.deepest("Qwen3.6-27B", 8 * GIB)


@pytest.mark.parametrize(
    ("name", "unread"), [("toy-moe", "embedding"), ("Qwen3.5-0.8B", "lm_head"), ("Qwen3.6-27B", "embedding")]
)
def test_a_pass_reads_the_layers_and_the_head(name, unread):
    """Where both matrices of the vocabulary exist, the embedding is not read: only the rows of some tokens are."""
    anatomy = ql.anatomy(name)
    outside = sum(anatomy.parameters[part] for part in ("mtp", "vision", unread))
    assert streaming.pass_bytes(name)["a pass"] == 2 * (anatomy.total - outside)


def test_ratios():
    sizes = {"files": 1000, "a pass": 800, "first layer": 100}
    run = {"bytes read, opening": 50, "bytes read, running": 808, "seconds waiting": 9.0}
    run |= {"seconds": 20.0, "seconds computing": 11.0, "peak bytes": 3 * GIB}
    found = {"bytes": sizes, "bytes per second": [50, 100, 200], "ways": {"in memory": {"seconds": 15.0}}}
    expected = {"read / a pass": 1.01, "read / files": 0.858, "waiting / reading": 9 / 8, "peak, GiB": 3}
    assert streaming.compared(found, run) == pytest.approx(expected | {"seconds / overlapped": 20 / (1 + 15)})
    alone = found | {"ways": {}}
    assert streaming.compared(alone, run)["seconds / overlapped"] == pytest.approx(20 / (1 + 11))
    slow = alone | {"bytes per second": [1, 10, 20]}
    assert streaming.compared(slow, run)["seconds / overlapped"] == pytest.approx(20 / (10 + 80))


@pytest.mark.slow
def test_memory_is_watched_from_outside():
    code = "import time; held = b'1' * 2**28; time.sleep(0.3); del held; print('noise'); print('{\"a\": 1}')"
    found = run_watched([sys.executable, "-c", code])
    assert found["a"] == 1
    assert 2**28 < found["peak bytes"] < 2**28 + 2**26
    assert found["at the peak"]["RssAnon"] > 2**28


@pytest.mark.slow
@pytest.mark.parametrize("part", streaming.PARTS)
def test_every_part_runs_on_a_small_geometry(part, tmp_path, capsys):
    sizes = dict(geometry="tiny", layers=4, texts=2, tokens=16)
    streaming.main(parts=[part], memory="", scratch=tmp_path, out=tmp_path / "out", **sizes)
    (file,) = (tmp_path / "out").glob("streaming-*.json")
    found = json.loads(file.read_text())["parts"][part]["tiny"]
    assert found["ratios"].keys() == streaming.PARTS[part].limits.keys()
    assert (found["layers"], found["texts"], found["tokens"]) == (4, 2, 16)
    first = found["ways"][streaming.PARTS[part].ways[0]]
    assert first["bytes read, opening"] + first["bytes read, running"] >= found["bytes"]["a pass"]
    assert first["seconds"] > 0 and first["peak bytes"] > 10**8
    assert streaming.MEANING in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_an_unknown_part_is_an_error(tmp_path):
    with pytest.raises(streaming.typer.BadParameter, match="two-texts: the parts are one-text, texts, sweep"):
        streaming.main(parts=["two-texts"], out=tmp_path)
