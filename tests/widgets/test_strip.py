"""The strip of tokens: accepted, rejected and added tokens, their tooltips, and HTML without scripts."""

import re
from html.parser import HTMLParser

import pytest

from qwenlab.errors import BadArgument
from qwenlab.record import Recording
from qwenlab.testing.ledgers import Played, ledger, made_ledger
from qwenlab.widgets import strip

WORDS = {
    0: "<|end|>",
    1: " a",
    2: "b\n",
    3: "<script>alert(1)</script>",
    4: "\x1b[31m",
    5: "",
    6: "'\"&",
    7: "\t",
    8: "x\n",
}
ROUNDS = [
    Played(
        (1, 2), (1, 3, 9), prompt=4, label="<b>", probability=(0.5, 0.25), main=(0.75, 0.125)
    ),  # a, not b but script
    Played((2, 6), (2, 6, 1), prompt=4, label="<b>"),  # both, and a
    Played((), (4,), prompt=4, label="<b>"),
    Played((1, 0, 2), (1, 0, 2, 6), prompt=4, label="<b>"),  # cut by the end of text
]


class Page(HTMLParser):
    """The tokens of a strip with their class and title, in order; every tag met."""

    def __init__(self, html):
        super().__init__()
        self.tokens, self.tags, self.open, self.text = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(dict(attrs))

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        kind = self.open[-1].get("class", "")
        if kind in ("accepted", "rejected", "added"):
            self.tokens.append((kind, data, self.open[-1]["title"]))


@pytest.fixture
def page():
    return Page(strip(ledger(ROUNDS), WORDS.get, prompt=4)._repr_html_())


def test_accepted_rejected_and_added_tokens(page):
    assert [(kind, text) for kind, text, _ in page.tokens] == [
        ("accepted", " a"),
        ("rejected", "b↵"),  # what was not emitted does not end a line
        ("added", "<script>alert(1)</script>"),
        ("accepted", "b↵\n"),
        ("accepted", "'\"&"),
        ("added", " a"),
        ("added", "�[31m"),
        ("accepted", " a"),
        ("accepted", "<|end|>"),
    ]


def test_a_tooltip_describes_its_token(page):
    titles = [title for _, _, title in page.tokens]
    first = "round 0: 1 of 2 drafts accepted; a draft was rejected"
    assert titles[0] == f"draft 1, accepted: token 1; probability by draft head 0.500, target model 0.750\n{first}"
    assert titles[1] == f"draft 2, rejected: token 2; probability by draft head 0.250, target model 0.125\n{first}"
    assert titles[2] == f"added by the target model: token 3\n{first}"
    assert titles[-1].endswith("round 3: 2 of 3 drafts accepted; the text ended")


def test_the_page_runs_and_fetches_nothing(page):
    assert {tag for tag, _ in page.tags} == {"div", "span"}
    assert {name for _, attrs in page.tags for name in attrs} <= {"class", "style", "title"}
    html = strip(ledger(ROUNDS), WORDS.get, prompt=4)._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html
    assert "url(" not in html


def test_there_is_a_legend_and_a_caption_with_rule_depth_and_counts(page):
    for means in ("draft, accepted", "draft, rejected", "added by the target model"):
        assert means in page.text
    assert page.text.endswith(
        "prompt 4 (<b>), 4 rounds: 7 tokens drafted, 5 accepted, 8 emitted (rule greedy, depth 3, policy fixed, online)"
    )


def test_kinds_differ_without_colours():
    html = strip(ledger(ROUNDS), WORDS.get, prompt=4)._repr_html_()
    looks = {
        kind: re.sub("#[0-9A-Fa-f]+", "", re.search(f'class="{kind}"[^>]*style="([^"]*)"', html)[1])
        for kind in ("accepted", "rejected", "added")
    }
    assert len(set(looks.values())) == 3
    assert "line-through" in looks["rejected"]
    assert "border:" in looks["added"]


def test_as_text():
    lines = repr(strip(ledger(ROUNDS[:1] + ROUNDS[3:]), WORDS.get, prompt=4)).splitlines()
    assert lines[0].startswith("prompt 4 (<b>), 2 rounds")
    assert lines[1] == "[ a]-b↵-+<script>alert(1)</script>+ | [ a][<|end|>]"


def test_tokens_that_would_not_be_seen_have_a_mark():
    rounds = [Played((7, 5), (7, 8, 1))]
    page = Page(strip(ledger(rounds), WORDS.get)._repr_html_())
    assert [text for _, text, _ in page.tokens] == ["⇥\t", "∅", "x↵\n"]


def test_rounds_can_be_chosen():
    data = made_ledger(length=400, texts=3)
    shown = strip(data, str, prompt=1, rounds=range(3, 9, 2))
    assert len(shown.rounds) == 3
    assert shown.rounds[0][0].tooltip.endswith(shown.rounds[0][-1].tooltip.splitlines()[1])
    assert "round 3:" in shown.rounds[0][0].tooltip
    assert len(strip(data, str, prompt=1, rounds=slice(-2, None)).rounds) == 2
    first = strip(data, str, prompt=1)
    many = int((data["prompt"] == 1).sum())
    assert many > 100
    assert len(first.rounds) == 100
    assert f"100 of {many} rounds" in first.caption


def test_a_recording_will_do():
    data = made_ledger()
    assert strip(Recording({"rounds": data}, {}), str) == strip(data, str)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 12}, "prompt=12: this ledger has rounds of prompts 0 to 11"),
        ({"rounds": range(1000, 1010)}, r"rounds=range\(1000, 1010\): prompt 0 has rounds 0 to "),
    ],
)
def test_what_is_not_there_is_named(options, message):
    with pytest.raises(BadArgument, match=message):
        strip(made_ledger(), str, **options)


def test_decode_must_return_text():
    with pytest.raises(BadArgument, match=r"decode\(1\) returned int, not text\.\nGive tokenizer\.decode"):
        strip(ledger(ROUNDS), lambda token: token, prompt=4)


def test_strange_probabilities_are_left_out():
    data = ledger(ROUNDS[:1])
    data["draft_probability"] = data["draft_probability"] * float("nan")
    data["target_probability"] = data["target_probability"] * float("nan")
    assert "probability" not in strip(data, WORDS.get, prompt=4).rounds[0][0].tooltip
