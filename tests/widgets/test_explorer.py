"""The lists and what follows them, driven through their traits as a browser would, and shown as a kernel would."""

import base64

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure

from qwenlab.widgets.explorer import Drawing, Explorer, choice

PNG = b"\x89PNG"


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


class Example:
    """Two lists, the second of which depends on the first, and a count of what was drawn."""

    def __init__(self) -> None:
        self.drawn = 0
        self.letter = choice("Letter", [("first", "a"), ("second", "b")], "a letter")
        self.number = choice("Number", [1, 2], "a number")
        self.letter.observe(self.offer, names="value")
        self.explorer = Explorer({"letter": self.letter, "number": self.number}, self.draw)

    def offer(self, change) -> None:
        self.number.options = [("ten", 10), ("twenty", 20)]

    def draw(self) -> Drawing:
        self.drawn += 1
        return Drawing(Figure(figsize=(1, 1)), f"<b>{self.letter.value}</b>{self.number.value}")


@pytest.fixture
def example() -> Example:
    return Example()


def test_the_figure_is_there_before_anything_is_chosen(example):
    assert example.explorer.chosen == {"letter": "a", "number": 1}
    assert example.explorer.caption == "<b>a</b>1"


def test_choosing_draws_anew(example):
    before = example.explorer.figure
    example.explorer["number"].value = 2
    assert example.explorer.figure is not before
    assert example.explorer.caption == "<b>a</b>2"


def test_lists_that_change_together_are_drawn_once(example):
    example.explorer["letter"].value = "b"
    assert example.explorer.chosen == {"letter": "b", "number": 10}
    assert example.drawn == 2


def test_every_list_has_its_name_beside_it(example):
    assert [each.description for each in example.explorer.controls.children] == ["Letter", "Number"]


def test_figure_and_caption_are_plain_outputs_and_text_is_escaped(example, shell):
    with capture_output() as shown:
        display(example.explorer)
    lists, figure, caption = shown.outputs
    assert "application/vnd.jupyter.widget-view+json" in lists.data
    assert base64.b64decode(figure.data["image/png"]).startswith(PNG)
    assert figure.data["text/plain"] == example.explorer.caption
    assert figure.metadata["image/png"]["alt"] == example.explorer.caption
    assert caption.data == {"text/html": "<p>&lt;b&gt;a&lt;/b&gt;1</p>", "text/plain": "<b>a</b>1"}


def test_choosing_replaces_them_where_they_stand(example, shell):
    with capture_output() as first:
        display(example.explorer)
    with capture_output() as second:
        example.explorer["number"].value = 2
    assert all(output.update for output in second.outputs)
    assert [output.transient for output in second.outputs] == [output.transient for output in first.outputs[1:]]
    figure, caption = second.outputs
    assert figure.data["text/plain"] == caption.data["text/plain"] == "<b>a</b>2"
    assert caption.data["text/html"] == "<p>&lt;b&gt;a&lt;/b&gt;2</p>"
