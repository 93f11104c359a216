"""The command, run as a shell would run it."""

import os
import subprocess
import sys

import pytest

import qwenlab as ql
from qwenlab import cli
from qwenlab.testing.checkpoints import tiny_checkpoint


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `qwenlab` with these arguments: its exit status, and what it printed on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwenlab", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "140")
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


class TestHelp:
    @pytest.mark.slow
    def test_needs_no_torch(self):
        code = (
            "import sys, qwenlab.cli; sys.argv[1:] = ['--help']\ntry: qwenlab.cli.main()\nfinally: print(*sys.modules)"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "anatomy" in shown.stdout
        loaded = {name.partition(".")[0] for name in shown.stdout.split()}
        assert {"torch", "transformers", "matplotlib", "xarray", "pandas", "papermill", "numpy"} & loaded == set()

    def test_is_printed_where_nothing_is_asked(self, run):
        status, out, err = run()
        assert status == 2
        assert "profile" in out + err

    @pytest.mark.slow
    def test_the_command_is_installed_and_runs_as_a_module(self):
        environment = os.environ | {"COLUMNS": "100"}
        shown = subprocess.run(
            [sys.executable, "-m", "qwenlab.cli", "--help"], capture_output=True, text=True, env=environment
        )
        assert shown.returncode == 0
        assert "demo" in shown.stdout


class TestAnatomy:
    def test_prints_itself(self, run):
        status, out, _ = run("anatomy", "Qwen3.6-27B")
        assert status == 0
        assert "27,781,427,952" in out

    def test_an_unknown_name_is_a_message_and_no_traceback(self, run):
        status, out, err = run("anatomy", "Qwen3.6-72B")
        assert status == 2
        assert out == ""
        assert err.startswith("UnknownCheckpoint: 'Qwen3.6-72B' is neither a folder")
        assert "Did you mean" in err
        assert "Traceback" not in err

    def test_what_a_name_holds_is_not_taken_for_markup(self, run):
        _, _, err = run("anatomy", "[bold]no[/wrong]")
        assert "'[bold]no[/wrong]'" in err


class TestProfile:
    @pytest.fixture
    def files(self, tmp_path):
        paths = [tmp_path / "poem.txt", tmp_path / "more.md"]
        for path, domain in zip(paths, ("prose", "code"), strict=True):
            path.write_text("\n".join(ql.tasks.texts(domain, 2)))
        return paths

    @pytest.mark.slow
    def test_leaves_a_recording_figures_and_prints_the_layers(self, run, files, tmp_path):
        texts = [part for path in files for part in ("--text", path)]
        small = ("--max-tokens", 24, "--passages", 2, "--decode", 2)
        status, out, _ = run("profile", "toy-moe", *texts, "--out", tmp_path / "out", *small)
        assert status == 0
        recording = ql.Recording.open(tmp_path / "out" / "recording.nc")
        assert list(recording["routing"]["label"].values) == ["poem", "more"]
        rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
        assert [row[:2] for row in rows][2:4] == [["2", "DeltaNet"], ["3", "attention"]]
        assert "half-life" in out
        assert "router entropy" in out
        paths = [line for line in out.splitlines() if line.startswith("/")]
        assert str(tmp_path / "out" / "recording.nc") in paths
        assert str(tmp_path / "out" / "layers.png") in paths

    def test_files_of_one_name_are_told_apart(self, run, tmp_path):
        paths = [tmp_path / "a" / "text.txt", tmp_path / "b" / "text.txt"]
        for path in paths:
            path.parent.mkdir()
            path.write_text("the same name, twice")
        texts = [part for path in paths for part in ("--text", path)]
        run("profile", "toy-dense", *texts, "--out", tmp_path, "--probes", "residual", "--decode", 0)
        recording = ql.Recording.open(tmp_path / "recording.nc")
        assert list(recording["residual"]["label"].values) == list(map(str, paths))

    def test_a_file_that_is_no_text_is_an_error(self, run, tmp_path):
        (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
        status, _, err = run("profile", "toy-dense", "--text", tmp_path / "picture.png", "--out", tmp_path)
        assert status == 2
        assert "picture.png is not UTF-8 text" in err

    def test_an_unknown_probe_is_an_error(self, run, tmp_path):
        status, _, err = run("profile", "toy-dense", "--out", tmp_path, "--probes", "timing,rooting")
        assert status == 2
        assert err.startswith("BadArgument: probes: 'rooting' is not the name of a probe")

    def test_routing_of_a_dense_checkpoint_is_an_error(self, run, tmp_path):
        status, _, err = run("profile", "toy-dense", "--out", tmp_path, "--probes", "routing")
        assert status == 2
        assert "MissingPart: Routing() finds nothing to read: none of this model's 8 layers has a router." in err

    def test_a_file_that_is_not_there_is_an_error(self, run, tmp_path):
        status, _, err = run("profile", "toy-dense", "--text", tmp_path / "none.txt", "--out", tmp_path)
        assert status == 2
        assert "none.txt" in err


@pytest.mark.slow
def test_demo_prints_the_layers_and_the_paths(run, tmp_path):
    status, out, _ = run("demo", "--out", tmp_path)
    assert status == 0
    assert "router entropy" in out
    assert str(tmp_path / "10_layers.ipynb") in out
    assert str(tmp_path / "recording.nc") in out


class TestNew:
    def test_prints_the_path_of_the_copy(self, run, tmp_path):
        assert run("new", "10_layers", tmp_path / "other.py")[:2] == (0, f"{tmp_path / 'other.py'}\n")
        assert (tmp_path / "other.py").is_file()

    def test_an_existing_file_and_an_unknown_name_are_messages(self, run, tmp_path):
        path = tmp_path / "study.ipynb"
        path.touch()
        assert run("new", "00_tour", path)[2].startswith(f"BadArgument: {path} already exists")
        status, out, err = run("new", "tour", path)
        assert (status, out) == (2, "")
        assert err.startswith(
            "UnknownNotebook: No notebook 'tour' ships with qwenlab. Choose one of: 00_tour, 10_layers"
        )


class TestAcceptance:
    @pytest.mark.slow
    def test_prints_rates_with_their_names_and_leaves_what_it_says(self, run, tmp_path):
        text = tmp_path / "mine.txt"
        text.write_text("\n".join(ql.tasks.texts("code", 2)))
        small = ("--prompts", 2, "--prompt-tokens", 16, "--new-tokens", 12, "--depth", 2)
        status, out, _ = run("acceptance", "toy-dense", "--text", text, "--out", tmp_path / "out", *small)
        assert status == 0
        for word in ("lossless: ", "rule greedy, depth 2", "acceptance length", "mine", "predicted to pay best here"):
            assert word in out
        assert (tmp_path / "out" / "recording.nc").exists()

    def test_without_a_head_it_says_so(self, run, tmp_path):
        tiny_checkpoint(tmp_path / "headless", mtp=None)
        status, _, err = run("acceptance", tmp_path / "headless", "--out", tmp_path / "out")
        assert status == 2
        assert "has no MTP head" in err


class TestTrace:
    def test_a_file_is_traced_in_windows_and_its_rates_are_printed(self, run, tmp_path):
        text = tmp_path / "mine.txt"
        text.write_text(ql.tasks.texts("code", 1)[0][:600])
        made = tmp_path / "trace.nc"
        status, out, _ = run("trace", "toy-dense", "--text", text, "--out", made, "--depth", 2, "--window", 64)
        assert status == 0
        traced = ql.speculative.Trace.open(made)
        assert (traced.depth, traced.is_own_output) == (2, False)
        assert f"{traced.dataset.sizes['token']:,} tokens, rule greedy" in out
        assert "teacher-forced agreement" in out
