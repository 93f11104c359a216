"""Ways to feed the same texts to a model."""

import torch

from qwenlab import probes
from qwenlab.probes.session import watch


def thorough(model):
    """Every probe that reduces tokens and fits this model, each leaving nothing out."""
    return tuple(each for each in probes.thorough(model) if each.name not in ("timing", "memory"))


def recorded(model, feed, *probes):
    """What the probes (the thorough ones, if none are named) saw of `feed(model, seen)`."""
    probes = probes or thorough(model)
    with torch.no_grad(), watch(model, *probes) as seen:
        feed(model, seen)
    return seen.recording()


def one_by_one(texts):
    def feed(model, seen):
        for tokens in texts:
            model(input_ids=tokens[None], use_cache=False)

    return feed


def padded(texts, side):
    """All in one batch."""
    ids, mask = batch(texts, side)
    return lambda model, seen: model(input_ids=ids, attention_mask=mask)


def in_pieces(texts, widths, cache=None):
    """One batch, padded on the left, a few columns at a time through a cache."""
    ids, mask = batch(texts, "left")
    started = ids.shape[1] - min(len(tokens) for tokens in texts)

    def feed(model, seen):
        past = cache
        for start, stop in pieces(ids.shape[1], widths, started):
            out = model(
                input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=past, use_cache=True
            )
            past = out.past_key_values

    return feed


def pieces(columns, widths, started):
    """Cut columns into pieces of these widths, taken in turn.

    transformers takes a piece of one column for generated tokens, which it never masks: until all rows have `started`,
    a piece is of two columns at least.
    """
    start, turn = 0, 0
    while start < columns:
        width = widths[turn % len(widths)]
        stop = min(columns, start + (max(2, width) if start < started else width))
        yield start, stop
        start, turn = stop, turn + 1


def batch(texts, side):
    """Token ids [text, column] and their attention_mask."""
    width = max(len(tokens) for tokens in texts)
    ids, mask = (torch.zeros(len(texts), width, dtype=torch.long) for _ in range(2))
    for row, tokens in enumerate(texts):
        columns = slice(width - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, columns], mask[row, columns] = tokens, 1
    return ids, mask
