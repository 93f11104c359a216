import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from qwenlab.checkpoint.anatomy import display
from qwenlab.checkpoint.anatomy.anatomy import anatomy, catalogue

GOLDEN = Path(__file__).parents[2] / "golden"


class Page(HTMLParser):
    """The tags and the text of a piece of HTML, which must close every tag it opens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("name", ["Qwen3.6-27B", "Qwen3.6-35B-A3B"])
def test_the_sheet_of_a_published_checkpoint(name):
    assert str(anatomy(name)) == (GOLDEN / f"anatomy-{name}.txt").read_text().rstrip("\n")


def test_a_notebook_shows_every_layer_in_the_colour_of_its_kind(tiny_dense):
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"] * 2
    found = anatomy(tiny_dense | {"layer_types": kinds})
    page = Page(found._repr_html_())
    strip = [attributes for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert [cell["title"] for cell in strip] == [f"layer {i}: {display.LABELS[kind]}" for i, kind in enumerate(kinds)]
    assert all(display.COLOURS[kind] in cell["style"] for cell, kind in zip(strip, kinds, strict=True))


@pytest.mark.parametrize("name", catalogue())
def test_a_notebook_shows_the_numbers_of_the_terminal(name):
    found = anatomy(name)
    text = Page(found._repr_html_()).text
    for number in (found.total, found.active, *filter(None, found.parameters.values())):
        assert f"{number:,}" in text
        assert f"{number:,}" in str(found)


def test_text_of_a_config_is_escaped(tiny_dense):
    name = "<script>alert(1)</script>[bold]\x1b[31m"
    found = anatomy(tiny_dense | {"_name_or_path": name.replace("/", "|")})
    html = found._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in str(found)
    assert "[bold]" in str(found)


def test_a_quantisation_we_cannot_count_is_shown_as_unknown():
    raw = json.loads(catalogue()["Qwen3.6-27B"].read_text()) | {"quantization_config": {"quant_method": "<awq>"}}
    found = anatomy(raw)
    assert "unknown" in str(found)
    assert "&lt;awq&gt;" in found._repr_html_()


def test_costs_are_shown_at_contexts_the_model_is_made_for(tiny_dense):
    def first_column(**change: int) -> list[str]:
        return [row[0] for row in display._costs(anatomy(tiny_dense | change))]

    assert first_column(max_position_embeddings=262_144) == ["4,096", "32,768", "262,144"]
    assert first_column(max_position_embeddings=40_000) == ["4,096", "32,768"]
    assert first_column(max_position_embeddings=512) == ["512"]


def test_a_terminal_shows_the_two_colours():
    console = Console(force_terminal=True, color_system="truecolor", width=120)
    with console.capture() as capture:
        console.print(anatomy("Qwen3.6-27B"))
    assert "38;2;0;114;178" in capture.get()
    assert "38;2;230;159;0" in capture.get()


@pytest.mark.parametrize(
    ("shown", "number"),
    [("27.78 billion", 27_781_427_952), ("999", 999), ("1 thousand", 1000)],
)
def test_parameters_are_rounded_to_four_digits(shown, number):
    assert display._parameters(number) == shown


@pytest.mark.parametrize(
    ("shown", "number"), [("64 KiB", 65_536), ("1023 KiB", 1023 * 1024), ("5.69 GiB", 5.687 * 2**30)]
)
def test_bytes_are_shown_in_binary_units(shown, number):
    assert display._bytes(number) == shown
