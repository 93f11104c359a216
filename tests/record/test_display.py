"""How a recording looks, in a terminal and in a notebook."""

import pytest

from qwenlab.record import Recording
from qwenlab.testing.ledgers import made_ledger
from qwenlab.testing.recordings import made_recording
from qwenlab.testing.traces import made_trace


def test_in_a_terminal_it_says_what_was_watched_and_where_it_came_from():
    recording = made_recording()
    recording.attrs.update(created="2026-01-02T03:04:05+00:00", device="cpu")
    assert repr(recording) == (
        "Recording of made-up (qwen3_5_moe)\n"
        "  read       319 tokens in 16 sequences\n"
        "  labels     code 159, prose 160\n"
        "  layers     6 DeltaNet, 2 attention\n"
        "  run        float64, cpu, 2026-01-02T03:04:05+00:00\n"
        "  deltanet   6 layers (0-2 4-6) · 4 heads · 2 key heads\n"
        "  attention  2 layers (3 7) · 4 heads\n"
        "  routing    8 layers (0-7) · 16 experts · 7 windows\n"
        "  residual   8 layers (0-7) · 2 parts\n"
        "  timing     8 layers (0-7) · 3 parts · 2 phases\n"
        "  memory     8 contexts"
    )


@pytest.mark.parametrize(
    ("cropped", "shown"),
    [
        (0, ""),
        (1234, ", of which 1,234 were cropped from their cache later (rejected drafts)"),
        ("unknown", ", of which some may have been cropped from their cache later (rejected drafts)"),
    ],
)
def test_tokens_that_were_cropped_later_are_named(cropped, shown):
    recording = made_recording()
    recording.attrs["cropped_tokens"] = cropped
    assert f"read       319 tokens in 16 sequences{shown}\n" in repr(recording)
    assert f"319 tokens in 16 sequences{shown}<" in recording._repr_html_()


def test_what_the_probe_left_out_is_said():
    recording = made_recording(probes=["deltanet"])
    recording.tree["deltanet"].attrs["sample"] = '{"prediction_heads": [0, 1, 2, 8], "every": 16}'
    assert "sampled: prediction_heads 0-2 8, every 16" in repr(recording)


def test_rounds_and_traces_say_how_long_they_are():
    recording = Recording({"rounds": made_ledger(), "trace": made_trace()}, {})
    assert repr(recording) == (
        "Recording of an unnamed model\n"
        "  rounds    424 rounds · 4 drafts\n"
        "  trace     12 texts · 1,034 tokens · 4 drafts"
    )


def test_in_a_notebook_it_shows_the_layers_and_escapes_every_text():
    recording = made_recording()
    recording.attrs.update(checkpoint="<script>alert(1)</script>", prompts_hash="<b>")
    page = recording._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;" in page
    assert page.count("background:#0072B2") == 6
    assert page.count("background:#E69F00") == 2
    assert "<summary>provenance</summary>" in page


def test_hostile_layer_types_are_escaped():
    recording = Recording({}, {"layer_types": ['"><script>'], "labels": {"<i>": 1, "b": 2}, "tokens": 3})
    assert "<script>" not in recording._repr_html_()
    assert "<i>" not in recording._repr_html_()


def test_a_recording_of_nothing_is_shown_too():
    assert repr(Recording({}, {})) == "Recording of an unnamed model"
    assert "an unnamed model" in Recording({}, {})._repr_html_()
