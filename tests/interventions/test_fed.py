"""An intervention has the same effect however a text is read: whole, in steps, padded, generated, drafted, scored."""

import pytest
import torch

import qwenlab as ql
from qwenlab.interventions import Noise, Scale, Zero, intervene
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.interventions.feeding import logits, of_every_sort


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return ql.open(tiny_checkpoint(tmp_path_factory.mktemp("changed")))


def test_prefill_and_decode_are_changed_as_one_pass(model, text):
    """Token by token on a cache, the logits of the whole; random draws too, which depend on sequence and position."""
    tokens = text(14)[None]
    interventions = of_every_sort(model, text)
    with intervene(model, *interventions):
        whole = logits(model, tokens)
    with torch.no_grad(), intervene(model, *interventions):
        cache, found = None, []
        for start, stop in ((0, 5), *((each, each + 1) for each in range(5, 14))):
            out = model(tokens[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-3, atol=1e-3)


def test_a_padded_batch_is_changed_as_its_texts_alone(model, text):
    texts = [text(9), text(6, 1)]
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    for row, tokens in enumerate(texts):
        ids[row, 9 - len(tokens) :], mask[row, 9 - len(tokens) :] = tokens, 1
    interventions = of_every_sort(model, text)
    with intervene(model, *interventions):
        together = logits(model, ids, attention_mask=mask)
    with intervene(model, *interventions):  # the second text is the second sequence here too
        alone = [logits(model, tokens[None])[0] for tokens in texts]
    for row, tokens in enumerate(texts):
        torch.testing.assert_close(together[row, 9 - len(tokens) :], alone[row], rtol=1e-3, atol=1e-3)


def test_generate(small, text):
    """Greedy, a left-padded batch: each new token is the argmax of the changed model on all before it."""
    ids, mask = torch.stack([text(7), text(7, 1)]), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    interventions = (
        Zero("layers.0.mixer.heads", heads=[0]),
        Noise("layers.1.mlp", seed=4),
        Scale("layers.0.mixer.decay", by=0.7),
    )
    with intervene(small, *interventions) as session:
        made = small.generate(ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert [place.reached for place in session.hits["Noise('layers.1.mlp', seed=4)"]] == [6]
    mask = torch.nn.functional.pad(mask, (0, 5), value=1)
    with intervene(small, *interventions):
        again = logits(small, made[:, :-1], attention_mask=mask)
    again[..., 0] = -torch.inf  # min_new_tokens keeps the end token out
    assert torch.equal(again[:, 6:].argmax(-1), made[:, 7:])
    assert not torch.equal(made, small.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False))


def test_drafting_in_an_changed_model_finds_what_decoding_finds(ckpt, text):
    """Verifying passes read several tokens, some of them twice: each is changed as it is in plain decoding."""
    prompt = text(20)
    interventions = (
        Zero("layers.0.mixer.heads", heads=[1]),
        Noise("layers.1.mlp"),
        Scale("layers.3.mixer.value", by=0.5),
    )

    def plain():
        return ckpt.model.generate(prompt[None], max_new_tokens=12, do_sample=False)[0, 20:].tolist()

    with intervene(ckpt, *interventions):
        expected = plain()
    assert expected != plain()
    with intervene(ckpt, *interventions):
        made = ql.speculative.generate(ckpt, [prompt.tolist()], depth=3, max_new_tokens=12)
    assert list(made.tokens[0][len(prompt) :]) == expected


def test_scores_of_a_changed_model(ckpt):
    tasks = [ql.tasks.text_task(ckpt, ["one two three four", "five six"])]
    bare = ql.tasks.measure(ckpt, tasks)["loss"]
    with ql.intervene(ckpt, ql.interventions.Zero("layers.*.mixer", kind="full_attention")):
        changed = ql.tasks.measure(ckpt, tasks)["loss"]
    assert (changed != bare).all()
    assert ql.tasks.measure(ckpt, tasks)["loss"].equals(bare)
