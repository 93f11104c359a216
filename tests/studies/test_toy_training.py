"""The recipe of the toys: what it starts from, and that a training that was stopped goes on as if it had not been."""

import itertools
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import qwenlab as ql

RECIPE = Path(__file__).parents[2] / "experiments" / "toy-checkpoints"
TOKENIZER = Path(ql.checkpoint.__path__[0]) / "toys" / "toy-moe" / "tokenizer.json"


@pytest.fixture(scope="module")
def recipe():
    """The modules of the experiment, which is a folder of scripts and no package."""
    sys.path.insert(0, str(RECIPE))
    try:
        import train
        import trunk

        yield train, trunk
    finally:
        sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def texts():
    return tuple(ql.tasks.texts(domain) for domain in ("code", "prose", "arithmetic"))


def small(train, name, texts):
    """The training in miniature: two steps of recall, four with text, and the window cut to a quarter."""
    early, late, last = train.Recipe().legs
    legs = (
        replace(early, steps=2, recall_batch=2),
        replace(late, steps=2, recall_batch=2, text_batch=2),
        replace(last, steps=2, recall_batch=2, text_batch=2),
    )
    recipe = replace(train.Recipe(), legs=legs, window=64, warmup=1)
    return train.Training(name, Tokenizer.from_file(str(TOKENIZER)), recipe, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy-dense", "toy-moe"])
def test_a_stopped_training_ends_where_an_unbroken_one_does(recipe, texts, tmp_path, name):
    train, _ = recipe
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir(), stopped.mkdir()
    train.run(small(train, name, texts), whole)

    first = small(train, name, texts)
    for _ in range(3):
        first.advance()
    torch.save(first.state(), stopped / "state.pt")
    (stopped / "losses.jsonl").write_text("".join(f'{{"step": {s}, "seconds": 1.0}}\n' for s in range(1, 6)))
    train.run(small(train, name, texts), stopped)

    expected, found = (torch.load(folder / "state.pt", weights_only=True) for folder in (whole, stopped))
    for part in ("trunk", "head"):
        for tensor, value in expected[part].items():
            torch.testing.assert_close(found[part][tensor], value, rtol=0, atol=1e-6)
    steps = [json.loads(line)["step"] for line in (stopped / "losses.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_fresh_toy_has_a_memory_and_a_fresh_transformers_model_has_none(recipe):
    _, trunk = recipe
    torch.manual_seed(0)
    model_class, config_class, shape = trunk.SHAPES["toy-dense"]
    model = model_class(config_class(**shape))

    def median_half_life():
        layers = [layer.linear_attn for layer in model.model.layers if layer.block_type == "linear_attention"]
        rates = torch.cat([m.A_log.exp() * torch.nn.functional.softplus(m.dt_bias) for m in layers])
        return (math.log(2) / rates).median().item()

    assert median_half_life() < 0.2
    trunk.give_memory(model)
    assert 3 < median_half_life() < 30


def test_only_the_asked_for_values_bear_the_recall_loss(recipe):
    train, _ = recipe
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    leg = train.Recipe().legs[0]
    tokens, asked, rest = train.RecallBatches(tokenizer).batch(random.Random(0), leg)
    question = tokenizer.token_to_id("?")
    values = asked != train.IGNORE
    assert values.any()
    assert (tokens.roll(1, 1)[values] == question).all()
    assert not ((asked != train.IGNORE) & (rest != train.IGNORE)).any()


def test_the_learning_rate_warms_up_and_falls_once_for_the_first_two_legs_and_once_for_the_last(recipe):
    train, _ = recipe
    rates = [train.Recipe().learning_rate(step) for step in range(train.Recipe().steps)]
    assert rates[49] == max(rates[:2300]) == 1.5e-3
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[49:2300]))
    assert rates[2349] == max(rates) == 2e-3
    assert rates[2299] == pytest.approx(3e-5, rel=0.01)
    assert rates[-1] == pytest.approx(3e-5, rel=0.01)
