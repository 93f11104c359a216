"""Speculative decoding inside transformers' `generate`: the same text as without drafts."""

import pytest
import torch
from transformers import DynamicCache, StopStringCriteria, TextStreamer

from qwenlab.errors import BadArgument, BadPrompt, CannotRollBack, NothingDecoded
from qwenlab.speculative import CustomGenerate, Threshold
from qwenlab.testing.models import tiny_head, tiny_model

TEXTS = ["def f(x):\n    return", "import os\nimport sys\n\nclass Foo"]


@pytest.fixture(scope="module")
def inputs(dense):
    dense.tokenizer.padding_side = "left"
    return dense.tokenizer(TEXTS, return_tensors="pt", padding=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 30},
        {"stopping": "self"},
    ],
    ids=str,
)
def test_a_padded_batch_is_the_same_without_drafts(dense, inputs, more):
    """Also with processors that depend on the text, and criteria that end it."""
    more = dict(more)
    if "stopping" in more:
        more = {"stopping_criteria": [StopStringCriteria(dense.tokenizer, [more["stopping"]])]}
    drafting = CustomGenerate(dense, depth=3)
    wanted = dense.model.generate(**inputs, max_new_tokens=30, **more)
    found = dense.model.generate(**inputs, max_new_tokens=30, custom_generate=drafting, **more)
    assert torch.equal(found, wanted)
    assert drafting.ledger.attrs["rule"] == "greedy"
    assert int(drafting.ledger["accepted"].sum()) > 0


def test_sampling_follows_generation_config(dense, inputs):
    one = {name: tensor[1:] for name, tensor in inputs.items()}
    drafting = CustomGenerate(dense.mtp, depth=2, policy=Threshold(0.3), seed=5)
    how = dict(do_sample=True, temperature=0.7, top_k=10, max_new_tokens=12, custom_generate=drafting)
    found = dense.model.generate(**one, **how, return_dict_in_generate=True)
    assert torch.equal(found.sequences, dense.model.generate(**one, **how))
    attrs = drafting.ledger.attrs
    assert (attrs["rule"], attrs["drafting"], attrs["temperature"]) == ("speculative_sampling", "sampled", 0.7)
    assert "TopK" in attrs["processors"]
    assert found.past_key_values.get_seq_length() == found.sequences.shape[1] - 1


def test_a_streamer_gets_every_token_once(dense, inputs, capsys):
    one = {name: tensor[1:] for name, tensor in inputs.items()}
    drafting = CustomGenerate(dense, depth=3, streamer=TextStreamer(dense.tokenizer))
    found = dense.model.generate(**one, max_new_tokens=20, custom_generate=drafting)
    assert capsys.readouterr().out.strip() == dense.tokenizer.decode(found[0]).strip()


def test_unsupported_arguments_are_refused(dense, inputs):
    def fails(error, match, drafting=None, **more):
        drafting = drafting or CustomGenerate(dense, depth=2)
        with pytest.raises(error, match=match):
            dense.model.generate(**inputs, max_new_tokens=4, custom_generate=drafting, **more)

    fails(BadArgument, r"does not support num_beams(.|\n)*generate without drafts", num_beams=2)
    fails(BadArgument, r"output_scores", output_scores=True, return_dict_in_generate=True)
    streaming = CustomGenerate(dense, depth=2, streamer=TextStreamer(dense.tokenizer))
    fails(BadArgument, r"streamer, with more than one prompt", streaming)
    other = tiny_model("qwen3_5")
    fails(BadArgument, r"belongs to another Qwen3_5ForCausalLM", CustomGenerate(tiny_head(other), depth=1))
    with pytest.raises(NothingDecoded, match=r"No text was decoded yet(.|\n)*model.generate"):
        _ = CustomGenerate(dense, depth=2).ledger
    batch = DynamicCache(config=dense.model.config)
    dense.model(inputs["input_ids"][:, :3], past_key_values=batch)
    with pytest.raises(CannotRollBack, match="holds 3 tokens already"):
        dense.model.generate(
            **inputs, past_key_values=batch, max_new_tokens=4, custom_generate=CustomGenerate(dense, depth=1)
        )
    embedded = dense.model.get_input_embeddings()(inputs["input_ids"][1:])
    with pytest.raises(BadPrompt, match=r"got no tokens(.|\n)*Give input_ids, not inputs_embeds"):
        dense.model.generate(inputs_embeds=embedded, max_new_tokens=4, custom_generate=CustomGenerate(dense, depth=1))
    cache = DynamicCache(config=dense.model.config)
    dense.model(inputs["input_ids"][1:, :3], past_key_values=cache)
    with pytest.raises(CannotRollBack, match="holds 3 tokens already"):
        dense.model.generate(
            inputs["input_ids"][1:],
            past_key_values=cache,
            max_new_tokens=4,
            custom_generate=CustomGenerate(dense, depth=1),
        )
