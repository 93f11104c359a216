"""Losses token by token, with the class of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from qwenlab.tasks.arguments import named, whole
from qwenlab.tasks.encoding import all_encoded, plain_task
from qwenlab.tasks.measuring import token_losses
from qwenlab.tasks.token_classes import CLASSES, classes_of


@torch.no_grad()
def losses(
    checkpoint: Any,
    texts: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    max_tokens: int | None = 512,
    n: int = 3,
    batch_size: int = 8,
    progress: bool = False,
) -> xr.Dataset:
    """The loss of every token of some texts but the first ones, one row a token along `token`, text after text.

    labels      the domain of each text; by default ""
    max_tokens  longer texts are cut after so many
    n           of the n-grams of the class `repeated`

    loss   -ln p(x[t] | x[..t-1]), nat;  id: x[t]
    bytes  UTF-8 bytes of the text that x[t] adds: those up to its end that no token before it had
    repeated, first, associative, content, function
           bool: whether x[t] is in the class, as `token_classes` says

    Coordinates: text, its number; position, t; domain, its label. For `qwenlab.stats.losses`; a bool variable that you
    add is one class more there. Raises BadArgument, as for a text of fewer than two tokens.
    """
    whole("losses", batch_size=batch_size)
    found = all_encoded(checkpoint, texts, "losses", max_tokens)
    domains = named("losses", labels, len(found))
    classes = [classes_of(each, n) for each in found]
    by_text = dict(token_losses(checkpoint, [plain_task(found, "texts")], batch_size, progress))
    data: dict[str, Any] = {
        "loss": ("token", np.concatenate([by_text[index] for index in range(len(found))]), _LOSS),
        "id": ("token", np.concatenate([each.tokens[1:] for each in found]), {"units": "id", "long_name": "token"}),
        "bytes": ("token", np.concatenate([each.bytes[1:] for each in found]), _BYTES),
    }
    for name, means in CLASSES.items():
        values = np.concatenate([each[name][1:] for each in classes])
        data[name] = ("token", values, {"units": "1", "long_name": f"{name}: {means}"})
    lengths = [len(each.tokens) - 1 for each in found]
    position = np.concatenate([np.arange(1, length + 1) for length in lengths])
    coords: dict[str, Any] = {
        "text": ("token", np.repeat(np.arange(len(found)), lengths), {"units": "1", "long_name": "number of the text"}),
        "position": ("token", position, {"units": "token", "long_name": "place in the text"}),
        "domain": ("token", np.repeat(np.array(domains), lengths), {"long_name": "domain"}),
    }
    return xr.Dataset(data, coords, {"n": n, "texts": len(found)})


_LOSS = {"units": "nat", "long_name": "next-token loss"}
_BYTES = {"units": "byte", "long_name": "UTF-8 bytes that the token adds"}
