"""The same tokens give the same statistics however they are fed."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    MaxTimeCriteria,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qwenlab.capture.generate_calls import GENERATE_METHODS, RowEnds
from qwenlab.checkpoint.caches import cached_by
from qwenlab.checkpoint.random_weights.byte_tokenizer import save_tokenizer
from qwenlab.errors import AmbiguousSequences, UnsupportedTransformers
from qwenlab.interventions import cache_activations
from qwenlab.probes import DeltaNet
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import batch, in_pieces, one_by_one, padded, recorded

# Texts are beginnings of these, whatever Hypothesis draws: no near tie between experts then turns up by chance.
POOL = torch.randint(1, 280, (10, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def texts():
    return [POOL[row, :length] for row, length in enumerate((9, 3, 40, 1, 17, 40, 8, 2, 5, 11))]


@pytest.fixture(scope="module")
def alone(model, texts):
    """What is seen of the texts, each in a pass of its own."""
    return recorded(model, one_by_one(texts))


@pytest.fixture(scope="module")
def third(small, texts):
    """What is seen of the third text."""
    return recorded(small, one_by_one(texts[2:3]))


def assert_same_reading(first, second):
    assert_same(first, second)
    for fact in ("tokens", "sequences", "labels", "prompts_hash"):
        assert first.attrs[fact] == second.attrs[fact]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_says_what_its_texts_say_one_by_one(model, texts, alone, side):
    assert_same_reading(recorded(model, padded(texts, side)), alone)


@pytest.mark.parametrize("widths", [(40,), (8, 32), (1,), (38, 1, 1), (3, 2, 1)])
def test_pieces_say_what_the_whole_says(model, texts, alone, widths):
    assert_same_reading(recorded(model, in_pieces(texts, widths)), alone)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_any_pieces_of_any_batch_say_what_the_whole_says(small, lengths, widths):
    texts = [POOL[row, :length] for row, length in enumerate(lengths)]
    assert_same_reading(recorded(small, in_pieces(texts, widths)), recorded(small, one_by_one(texts)))


@pytest.fixture(scope="module")
def long(small, text):
    """Three long texts, and what is seen of them."""
    texts = [text(300, seed=1), text(141, seed=2), text(128, seed=3)]
    return texts, recorded(small, one_by_one(texts))


@pytest.mark.parametrize("widths", [(300,), (130, 1, 65), (127, 2), (64, 64, 128), (7, 150)])
def test_long_windows_and_many_chunks(small, long, widths):
    texts, whole = long
    assert_same_reading(recorded(small, in_pieces(texts, widths)), whole)


def test_batches_of_more_sequences_than_folds(small):
    texts = [POOL[row % 10, : 2 + row % 5] for row in range(21)]
    together = recorded(
        small, lambda model, seen: [padded(part, "right")(model, seen) for part in (texts[:9], texts[9:])]
    )
    assert_same_reading(together, recorded(small, one_by_one(texts)))
    assert together["deltanet"]["sequences"].sel(layer=0).values.tolist() == [[3, 3, 3, 3, 3, 2, 2, 2]]


def test_a_static_cache(small, texts):
    cache = StaticCache(config=small.config, max_cache_len=64)
    assert_same_reading(recorded(small, in_pieces(texts, (30, 1, 1, 1, 7), cache)), recorded(small, one_by_one(texts)))


def test_positional_arguments_and_tuples(small, texts, third):
    def feed(model, seen):
        cache = None
        for piece in texts[2].split(15):
            cache = model.model(piece[None], None, None, cache, use_cache=True, return_dict=False)[1]

    assert_same_reading(recorded(small, feed), third)


def test_embeddings_in_place_of_tokens(small, texts, third):
    embedded = small.get_input_embeddings()(texts[2])[None]
    fed = recorded(small, lambda model, seen: model(inputs_embeds=embedded))
    assert_same(fed, third)
    assert fed.attrs["prompts_hash"].startswith("embeddings:")

    other = recorded(small, lambda model, seen: model(inputs_embeds=embedded.flip(1)))
    assert other.attrs["prompts_hash"] != fed.attrs["prompts_hash"]

    looked_up = recorded(small, lambda model, seen: model(inputs_embeds=model.get_input_embeddings()(texts[2])[None]))
    assert looked_up.attrs["prompts_hash"].startswith("embeddings:")  # its ids have another shape

    own = recorded(small, lambda model, seen: model(inputs_embeds=model.get_input_embeddings()(texts[2][None])))
    assert own.attrs["prompts_hash"] == third.attrs["prompts_hash"]


def test_generate_says_what_its_texts_say(model, texts):
    prompts, new = texts[:3], []

    def feed(model, seen):
        ids, mask = batch(prompts, "left")
        new.append(model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=9)[:, ids.shape[1] :])

    fed = recorded(model, feed)
    # The token that generate found last was not read.
    read = [torch.cat([prompt, more[:-1]]) for prompt, more in zip(prompts, new[0], strict=True)]
    assert_same_reading(fed, recorded(model, one_by_one(read)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_generate_with_a_static_cache(small, texts, implementation):
    """transformers then hands its masks over ready-made, one for each kind of layer."""
    prompts, new = texts[:3], []

    def feed(model, seen):
        ids, mask = batch(prompts, "left")
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=5,
            cache_implementation="static",
            disable_compile=True,
        )
        new.append(out[:, ids.shape[1] :])

    small.set_attn_implementation(implementation)
    fed = recorded(small, feed)
    small.set_attn_implementation("sdpa")
    read = [torch.cat([prompt, more[:-1]]) for prompt, more in zip(prompts, new[0], strict=True)]
    assert_same_reading(fed, recorded(small, one_by_one(read)))


class EndAt(LogitsProcessor):
    """Ends each row, with token `end`, after this many new tokens."""

    def __init__(self, prompt, lengths, end):
        self.prompt, self.lengths, self.end = prompt, lengths, end

    def __call__(self, ids, scores):
        for row, length in enumerate(self.lengths):
            if ids.shape[1] - self.prompt == length:
                scores[row] = torch.full_like(scores[row], float("-inf")).index_fill(0, torch.tensor(self.end), 0.0)
            else:
                scores[row, self.end] = float("-inf")
        return scores


def whole(model):
    return model


def stack(model):
    return model.get_decoder() if isinstance(model, GenerationMixin) else model.model.language_model


@pytest.fixture(scope="module", params=[False, True], ids=["CausalLM", "ConditionalGeneration"])
def ending(request):
    """A model whose end tokens a test may set."""
    layers = ["linear_attention", "full_attention"]
    return tiny_model("qwen3_5_moe", layer_types=layers, wrapped=request.param)


@pytest.fixture(scope="module")
def reading(ending):
    """reading(model, texts) -> what is seen of texts, each in a pass of its own; read once."""
    known = {}

    def read(model, texts):
        key = model, tuple(tuple(text.tolist()) for text in texts)
        if key not in known:
            known[key] = recorded(model, one_by_one(texts))
        return known[key]

    return read


@pytest.mark.parametrize("part", [whole, stack])
@pytest.mark.parametrize("of_the_call", [False, True], ids=["config", "call"])
@pytest.mark.parametrize(("end", "ends", "pad"), [(0, 0, None), (5, [0, 5], 7), (5, [0, 5], None)])
def test_rows_that_end_early_are_left_out_after_their_end(
    end, ends, pad, of_the_call, ending, part, texts, reading, monkeypatch
):
    """Also where only the text stack is watched, which has no generation_config of its own."""
    given = {"eos_token_id": ends, "pad_token_id": pad}
    if not of_the_call:
        for name in given:
            monkeypatch.setattr(ending.generation_config, name, given[name])
        given = {}
    ids, mask = batch(texts[:4], "left")
    steps, out = (3, 45, 0, 38), []

    def feed(_, seen):
        out.append(
            ending.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=43,
                logits_processor=[EndAt(ids.shape[1], steps, end)],
                **given,
            )
        )

    with torch.no_grad(), cache_activations(part(ending), "layers.0.mixer") as taken:
        feed(ending, None)
    fed = recorded(part(ending), feed)
    read = []
    for row, (prompt, step) in enumerate(zip(texts, steps, strict=False)):
        new = out[0][row, ids.shape[1] :]
        read.append(torch.cat([prompt, new[: min(step + 1, 42)]]))  # the end itself is read, as the others go on
    assert_same_reading(fed, reading(part(ending), read))
    assert taken.lengths.tolist() == [len(tokens) for tokens in read]
    assert taken.fingerprint == fed.attrs["prompts_hash"]


def test_end_tokens_of_a_call_end_with_it(small, texts):
    """A loop by hand after it is read by the model's own end tokens again."""
    ids, mask = batch([texts[2], texts[2]], "left")
    ids[:, -6:] = 9

    def call(model, seen):
        model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=3, eos_token_id=9, pad_token_id=9)

    def call_then_loop(model, seen):
        call(model, seen)
        in_pieces(list(ids), (ids.shape[1] - 6, 1, 1, 1, 1, 1, 1))(model, seen)

    looped = recorded(small, call_then_loop).attrs["tokens"] - recorded(small, call).attrs["tokens"]
    assert looped == ids.numel()


class Never(StoppingCriteria):
    def __call__(self, ids, scores, **kwargs):
        return torch.zeros(len(ids), dtype=torch.bool)


def test_rows_that_end_by_something_else_are_refused(small, texts, tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids, mask = batch(texts[:2], "left")
    given = dict(attention_mask=mask, do_sample=False, max_new_tokens=3)
    methods, bound = [vars(GenerationMixin)[name] for name in GENERATE_METHODS], small.generate

    class Own(type(small)):
        def generate(self, inputs=None, **given):
            return GenerationMixin.generate(self, inputs, **given)

    message = r"may end by stopping_criteria, each at another token[\s\S]*Generate these texts one at a time"
    with torch.no_grad(), watch(small, DeltaNet()) as seen:
        with pytest.raises(AmbiguousSequences, match=message):
            small.generate(ids, stopping_criteria=StoppingCriteriaList([Never()]), **given)
        small.generate(ids, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(60)]), **given)
        small.generate(texts[0][None], stopping_criteria=[Never()], do_sample=False, max_new_tokens=3)
        config = GenerationConfig(stop_strings=["x"], max_new_tokens=3)
        with pytest.raises(AmbiguousSequences, match="may end by stop_strings"):
            small.generate(ids, attention_mask=mask, generation_config=config, tokenizer=tokenizer)
        for call in (partial(small.generate), partial(type(small).generate, small), bound, Own.generate.__get__(small)):
            with pytest.raises(AmbiguousSequences, match="may end by stopping_criteria"):
                call(ids, stopping_criteria=[Never()], **given)
        small.generate(ids, **given)
    assert seen.facts()["tokens"] > 0
    assert [vars(GenerationMixin)[name] for name in GENERATE_METHODS] == methods


def test_calls_of_another_model_say_nothing(small, texts):
    """It generates between the beginning of a call of the watched model and its first pass."""
    other = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"])
    ids, mask = batch(texts[:2], "left")
    given = dict(attention_mask=mask, do_sample=False, max_new_tokens=3)

    def generate_too(*_):
        other.generate(ids, stopping_criteria=[Never()], eos_token_id=9, pad_token_id=9, **given)

    handle = small.register_forward_pre_hook(generate_too)
    fed = recorded(small, lambda model, seen: model.generate(ids, **given))
    handle.remove()
    assert_same_reading(fed, recorded(small, lambda model, seen: model.generate(ids, **given)))


def test_a_transformers_whose_generate_cannot_be_followed(small, monkeypatch):
    monkeypatch.setattr("qwenlab.capture.generate_calls.GENERATE_METHODS", ("_prepare", "_get_stopping_criteria"))
    message = r"has no _prepare, so rows of a batch that ended cannot be left out.\nInstall a tested version"
    with pytest.raises(UnsupportedTransformers, match=message), watch(small, DeltaNet()):
        pass


def test_prompts_have_their_own_hash_in_the_published_class(texts):
    layers = ["linear_attention", "full_attention"]
    published = tiny_model("qwen3_5_moe", layer_types=layers, wrapped=True)
    plain = tiny_model("qwen3_5_moe", layer_types=layers)
    result = [recorded(published, one_by_one([tokens])).attrs["prompts_hash"] for tokens in texts[:3]]
    assert result == [recorded(plain, one_by_one([tokens])).attrs["prompts_hash"] for tokens in texts[:3]]
    assert len(set(result)) == 3


def test_embeddings_that_were_changed_in_place_are_not_their_ids(small, texts):
    def feed(change):
        def feed(model, seen):
            embedded = model.get_input_embeddings()(texts[2][None])
            embedded[:, 3] += change
            model(inputs_embeds=embedded)

        return recorded(small, feed).attrs["prompts_hash"]

    assert feed(1.0) != feed(50.0)
    assert feed(1.0).startswith("embeddings:")


def test_a_loop_that_uses_one_buffer_for_its_tokens(small, texts, third):
    def feed(model, seen):
        cached, token = cached_by(model), texts[2][None, :1].clone()
        for column in range(len(texts[2])):
            token.copy_(texts[2][None, column : column + 1])
            model(token, use_cache=True, **cached)

    assert_same_reading(recorded(small, feed), third)


@pytest.mark.parametrize("ends", [7, [7], np.int64(7), torch.tensor(7), torch.tensor([7]), np.array([7])])
def test_end_tokens_in_any_form(ends):
    assert RowEnds.of(GenerationConfig(eos_token_id=ends)) == RowEnds((7,), 7)
    assert RowEnds.of(GenerationConfig(eos_token_id=ends, pad_token_id=3)) == RowEnds((7,), 3)
    assert RowEnds.of(GenerationConfig()) == RowEnds((), None)


def test_a_text_of_end_tokens_fed_alone_is_read_whole(small):
    tokens = torch.tensor([4, 0, 0, 0, 9])
    assert_same_reading(recorded(small, in_pieces([tokens], (1,))), recorded(small, one_by_one([tokens])))


def test_caches_that_take_turns(small, texts):
    def feed(model, seen):
        caches = [None, None]
        for start in range(0, 40, 4):
            for which, tokens in enumerate((texts[2], texts[5])):
                for stop in (start + 3, start + 4):
                    piece = tokens[None, start if stop == start + 3 else start + 3 : stop]
                    caches[which] = model(piece, past_key_values=caches[which], use_cache=True).past_key_values

    assert_same_reading(recorded(small, feed), recorded(small, one_by_one([texts[2], texts[5]])))


def test_a_cache_that_was_reset_begins_new_sequences(small, texts):
    def feed(model, seen):
        cache = None
        for tokens in (texts[4], texts[2]):
            for piece in tokens.split(6):
                cache = model(piece[None], past_key_values=cache, use_cache=True).past_key_values
            cache.reset()
            if cache.get_seq_length():
                pytest.skip("this transformers keeps the columns of a cache that is reset")

    assert_same_reading(recorded(small, feed), recorded(small, one_by_one([texts[4], texts[2]])))


def test_reading_on_after_a_recording_was_taken(small, texts, third):
    def feed(model, seen):
        cache = None
        for column in range(40):
            cache = model(texts[2][None, column : column + 1], past_key_values=cache, use_cache=True).past_key_values
            if column == 20:
                assert seen.recording().attrs["tokens"] == 21
                assert int(seen.recording()["routing"]["load"].sum()) == 2 * 2 * 21

    assert_same_reading(recorded(small, feed), third)
