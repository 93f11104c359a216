"""What the view of the experts draws is what the statistics say of what was chosen."""

import numpy as np
import pytest

from qwenlab.errors import ProbeNotRecorded
from qwenlab.stats import coactivation, expert_load
from qwenlab.testing.recordings import made_recording
from qwenlab.widgets import explore_routing

ROUGH = "$x^ <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def recording():
    return made_recording(labels=("code", ROUGH), sequences=8)


@pytest.fixture
def explorer(recording):
    return explore_routing(recording)


def test_the_figure_follows_the_lists(explorer, recording):
    explorer["layer"].value, explorer["expert"].value, explorer["label"].value = 5, 7, "code"
    every, labels, partners = explorer.figure.axes
    apart, together = expert_load(recording, by_label=True).sel(layer=5), expert_load(recording).sel(layer=5)
    np.testing.assert_allclose([bar.get_height() for bar in every.patches], apart["share"].sel(label="code"))
    by_label = [together["share"].sel(expert=7), *apart["share"].sel(expert=7)]
    np.testing.assert_allclose([bar.get_width() for bar in labels.patches], by_label)
    lift = coactivation(recording)["lift"].sel(layer=5, expert=7).dropna("expert_2")
    np.testing.assert_allclose([bar.get_width() for bar in partners.patches], np.sort(lift)[::-1][:8])
    assert explorer.caption.startswith(f"layer 5 · expert 7 · code: load {float(by_label[1]):.3g} share of slots [")


def test_labels_are_text_and_nothing_else(explorer):
    explorer["label"].value = ROUGH
    explorer.figure.savefig("/dev/null", format="png")


def test_a_recording_without_routing_is_an_error():
    with pytest.raises(ProbeNotRecorded, match=r"No 'routing' was recorded"):
        explore_routing(made_recording(probes=("attention",)))
