"""A model under interventions, with texts split into passes in many ways: each must agree with one pass per text."""

import numpy as np
import torch

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.interventions import intervene
from tests.probes import by_hand
from tests.probes.feeding import batch, pieces

LENGTHS = (13, 9)


@torch.no_grad()
def alone(model, interventions, tokens):
    """Logits [token, vocabulary] of one pass over a text."""
    with intervene(model, *interventions):
        return model(tokens[None], use_cache=False).logits[0]


def assert_same_however_fed(model, interventions, texts, cache=lambda: None):
    """Two texts in pieces, token by token, padded on either side, one generated on: the logits, and the greedy text."""
    expected = [alone(model, interventions, tokens) for tokens in texts]
    for tokens, logits, widths in zip(texts, expected, ([4, 1, 3], [1]), strict=True):
        close(in_pieces(model, interventions, tokens, widths, cache()), logits)
    for side in ("left", "right"):
        ids, mask = batch(texts, side)
        with torch.no_grad(), intervene(model, *interventions):
            found = model(ids, attention_mask=mask, use_cache=False).logits
        for row, real, logits in zip(found, mask, expected, strict=True):
            close(row[real.bool()], logits)
    ids, mask = batch(texts, "left")
    close(in_pieces(model, interventions, ids, [5, 1], cache(), mask, min(map(len, texts))), expected[0])
    assert_generates(model, interventions, texts[0])


@torch.no_grad()
def in_pieces(model, interventions, tokens, widths, held=None, mask=None, shortest=None):
    """Logits of the first text, through a cache."""
    ids = tokens if tokens.ndim == 2 else tokens[None]
    found = []
    with intervene(model, *interventions):
        for start, stop in pieces(ids.shape[1], widths, 0 if shortest is None else ids.shape[1] - shortest):
            given = {} if mask is None else {"attention_mask": mask[:, :stop]}
            out = model(ids[:, start:stop], past_key_values=held, use_cache=True, **given)
            found.append(out.logits[0])
            held = out.past_key_values
    return torch.cat(found)


@torch.no_grad()
def assert_generates(model, interventions, prompt, new=4):
    """`generate` writes what the logits of whole passes say."""
    with intervene(model, *interventions):
        text = model.generate(prompt[None], max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)[0]
    logits = alone(model, interventions, text)
    assert torch.equal(logits[len(prompt) - 1 : -1].argmax(-1), text[len(prompt) :])


def assert_gradient(model, interventions, tokens):
    """Backward gives the slope that differences of the loss give, along the gradient with something else mixed in.

    Along a random direction alone the slope would be small against the noise of float32. The loss bends quickly,
    and routers change their choice: by steps of 1e-3 of the embeddings' norm its slope is up to 80 per cent off, by
    those taken here less than 0.2.
    """
    generator = torch.Generator().manual_seed(1)
    vectors = model.get_input_embeddings()(tokens[None]).detach().requires_grad_()
    weight = torch.randn(len(tokens), model.config.vocab_size, generator=generator)

    def loss(vectors):
        with intervene(model, *interventions):  # a block each: what is drawn for a second text is drawn anew
            return (model(inputs_embeds=vectors, use_cache=False).logits[0].double() * weight).sum()

    (gradient,) = torch.autograd.grad(loss(vectors), vectors)
    assert torch.isfinite(gradient).all()
    other = torch.randn(vectors.shape, generator=generator)
    along = gradient / gradient.norm() + other / other.norm()
    step = 1e-5 * vectors.detach().norm()
    with torch.no_grad():
        by_steps = {n: loss(vectors + n * step * along) for n in (-2, -1, 1, 2)}
    slope = (8 * (by_steps[1] - by_steps[-1]) - (by_steps[2] - by_steps[-2])) / (12 * step)
    torch.testing.assert_close((gradient * along).sum().double(), slope.double(), rtol=1e-2, atol=0)


def assert_by_hand(model, interventions, tokens, changed):
    """Every mixer's output under the interventions is that worked out in float64 from its own input.

    changed  by layer, the keyword arguments of `by_hand.deltanet` or `by_hand.attention`; the other layers are plain
    """
    decoder = decoder_of(model)
    with intervene(model, *interventions):
        inputs = by_hand.inputs_of(model, tokens)
    for layer, given in enumerate(inputs):
        mixer, how = decoder.part(layer, "mixer"), changed.get(layer, {})
        if decoder.layer_types[layer] == "linear_attention":
            expected = by_hand.deltanet(mixer, given["mixer"], **how)
        else:
            expected = by_hand.attention(mixer, given["mixer"], given.get("cos"), given.get("sin"), **how)
        out = given["own"]["mixer"]
        np.testing.assert_allclose(
            out, expected["out"], rtol=1e-3, atol=2e-5 * abs(out).max(), err_msg=f"layer {layer}"
        )


def assert_nothing_left(model, interventions, tokens):
    """After the block, also one that raised, the model is what it was, bit for bit."""
    with torch.no_grad():
        before = model(tokens[None]).logits
        alone(model, interventions, tokens)
        try:
            with intervene(model, *interventions):
                model(tokens[None])
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert torch.equal(model(tokens[None]).logits, before)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)
