"""The command of a recipe has the recipe's parameters: names, defaults and help texts. Errors are messages."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qwenlab import cli, recipes
from qwenlab.cli import app, checkpoints
from qwenlab.cli.command import add_recipe
from qwenlab.errors import BadArgument
from qwenlab.recipes import inputs

RECIPES = [name for name in recipes.__all__ if name.islower()]
GROUP = typer.main.get_command(app)


@pytest.mark.parametrize("name", RECIPES)
def test_every_parameter_is_an_option_with_its_default_and_a_help_text(name):
    options = {option.name: option for option in GROUP.commands[name.replace("_", "-")].params}
    parameters = inspect.signature(getattr(recipes, name)).parameters
    assert set(parameters) <= set(options)
    for parameter in parameters.values():
        option = options[parameter.name]
        assert len(option.help) > 10, parameter.name
        if parameter.name == "progress":
            assert (parameter.default, option.default, option.opts) == (True, False, ["--no-progress"])
        elif parameter.default is inspect.Parameter.empty:
            assert option.required or parameter.annotation.endswith("| None")
            assert option.default in (None, [])
        elif isinstance(parameter.default, tuple):
            assert tuple(option.default) == parameter.default
        else:
            assert option.default == parameter.default, parameter.name
            assert not option.required


def test_the_options_that_are_not_of_the_recipe_are_of_its_report():
    extra = {
        name: {option.name for option in GROUP.commands[name.replace("_", "-")].params}
        - set(inspect.signature(recipe).parameters)
        for name in RECIPES
        for recipe in [getattr(recipes, name)]
    }
    assert {name: names for name, names in extra.items() if names} == {"ablate": {"rows"}}


def study(
    source: inputs.CheckpointInput,
    texts: inputs.LabelledTexts | None,
    out: inputs.FolderPath,
    *,
    of: Sequence[str] = ("mixer", "mlp"),
    layers: Sequence[int] | None = None,
    count: inputs.Positive = 2,
    progress: inputs.Progress = True,
) -> dict[str, object]:
    """Return the arguments.

    texts   texts to read
    out     folder for `files`
    of      kinds of parts
    layers  numbers of layers,
            counted from 0
    count   sequences

    The rest of the docstring is not part of the help.
    """
    return dict(source=source, texts=texts, out=out, of=of, layers=layers, count=count, progress=progress)


@pytest.fixture
def run():
    """Run the command of `study`: its exit status and output, and what the recipe and the report received."""
    received = []

    def report(result: dict, count: int, *, rows: inputs.Positive = 3) -> None:
        """Print nothing.

        rows  rows to print
        """
        received.append((result, count, rows))

    small = typer.Typer(rich_markup_mode=None)
    add_recipe(small, study, report)

    def run(*words):
        received.clear()
        shown = CliRunner().invoke(small, list(map(str, words)), env={"COLUMNS": "160"})
        return shown, *(received[0] if received else ())

    return run


def test_arguments_arrive_as_the_recipe_takes_them(run, tmp_path):
    files = [tmp_path / "a.txt", tmp_path / "b.md"]
    for file in files:
        file.write_text(file.name)
    texts = [word for file in files for word in ("--text", file)]
    lists = ("--of", "head, gate", "--of", "mlp", "--layers", "0,3", "--layers", "5")
    _, result, count, rows = run("toy", "--out", tmp_path, *texts, *lists, "--count", 4, "--no-progress")
    assert result == dict(
        source="toy",
        texts={"a": "a.txt", "b": "b.md"},
        out=tmp_path,
        of=["head", "gate", "mlp"],
        layers=[0, 3, 5],
        count=4,
        progress=False,
    )
    assert (count, rows) == (4, 3)


def test_defaults_are_those_of_the_recipe(run):
    _, result, count, rows = run("toy", "--out", "somewhere", "--rows", 9)
    assert result == study("toy", None, Path("somewhere"), of=["mixer", "mlp"])
    assert (count, rows) == (2, 9)


def test_help_texts_are_those_of_the_docstring_and_of_shared_types(run):
    shown, *_ = run("--help")
    words = " ".join(shown.output.split())
    for text in (
        "Return the arguments.",
        "Checkpoint: a shipped toy, a folder",
        "Texts to read. One file per --text, whose name is the label.",
        "Folder for files.",
        "Numbers of layers, counted from 0.",
        "Sequences.",
        "Do not show progress bars.",
        "Rows to print.",
    ):
        assert text in words
    assert "rest of the docstring" not in words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "Missing argument"),
        (["toy"], "Missing option '--out'"),
        (["toy", "--out", "x", "--cuont", 1], "No such option"),
        (["toy", "--out", "x", "--count", 0], "Invalid value for '--count'"),
        (["toy", "--out", "x", "--text", "none.txt"], "Invalid value for '--text'"),
        (["toy", "--out", __file__], "is a file"),
    ],
)
def test_what_is_wrong_is_an_error_before_the_recipe_runs(run, words, message):
    shown, *received = run(*words)
    assert shown.exit_code == 2
    assert message in shown.output
    assert received == []


def test_a_list_of_numbers_with_another_word_is_an_error(run):
    shown, *_ = run("toy", "--out", "x", "--layers", "0,x")
    assert isinstance(shown.exception, BadArgument)
    assert str(shown.exception) == "--layers '0,x': give numbers with commas between them, such as 0,3,7."


class TestErrors:
    @pytest.fixture
    def ended(self, monkeypatch, capsys):
        """Run `qwenlab anatomy x`, which raises this error: exit status and stderr."""

        def ended(error):
            def fail(*_, **__):
                raise error

            monkeypatch.setattr(checkpoints, "anatomy_of", fail)
            monkeypatch.setattr(sys, "argv", ["qwenlab", "anatomy", "x"])
            with pytest.raises(SystemExit) as exit:
                cli.main()
            return exit.value.code, capsys.readouterr().err

        return ended

    def test_of_files_are_messages(self, ended):
        code, shown = ended(PermissionError(13, "Permission denied", "/out"))
        assert (code, shown) == (2, "PermissionError: [Errno 13] Permission denied: '/out'\n")

    def test_that_are_unexpected_say_how_to_see_the_traceback(self, ended):
        code, shown = ended(ZeroDivisionError("by zero"))
        assert code == 1
        assert shown == "ZeroDivisionError: by zero\nThis is unexpected: set QWENLAB_TRACEBACK=1 for the traceback.\n"

    def test_are_raised_where_the_traceback_is_wanted(self, ended, monkeypatch):
        monkeypatch.setenv("QWENLAB_TRACEBACK", "1")
        with pytest.raises(ZeroDivisionError):
            ended(ZeroDivisionError("by zero"))
