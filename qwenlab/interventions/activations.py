"""`take`: whole values at chosen sites, kept to be put in elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from qwenlab.capture.generate_calls import GenerateCalls
from qwenlab.capture.tokens import TokenBatch
from qwenlab.checkpoint.decoder import decoder_of, module_of
from qwenlab.checkpoint.fused_kernels import running_on_cpu
from qwenlab.checkpoint.sites import find_sites
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import BadArgument, SilentSite, UnknownSite
from qwenlab.interventions.module_sites import InterventionPoints
from qwenlab.interventions.pass_tracker import PassTracker


class ActivationCache:
    """Values at sites, of the texts that a model read in a `take` block.

    sites        their names
    lengths      int [sequence]: tokens of each, padding not counted
    fingerprint  of the tokens read, as in `prompts_hash`
    """

    def __init__(self, sites: tuple[str, ...]) -> None:
        self.sites, self.fingerprint = sites, ""
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self._read: dict[str, list[tuple[TokenBatch, torch.Tensor]]] = {site: [] for site in sites}
        self._whole: dict[str, torch.Tensor] = {}

    def __getitem__(self, site: str) -> torch.Tensor:
        """[sequence, position, ...]: what was taken at a site, 0 beyond a sequence's end. Raises UnknownSite."""
        if site not in self._whole:
            if site not in self.sites:
                raise UnknownSite(
                    f"No value was taken at {site}; there are those of {', '.join(self.sites)}.\n"
                    "Take the same sites as the edit changes."
                )
            raise BadArgument("The `take` block has not ended, so its values are not whole.\nUse them after it.")
        return self._whole[site]

    def __repr__(self) -> str:
        return f"Values({self.fingerprint})"

    def tokens(self, site: str) -> torch.Tensor:
        """[token, ...]: the values of all tokens, one after the other."""
        whole = self[site]
        return whole[(torch.arange(whole.shape[1]) < self.lengths[:, None]).to(whole.device)]

    def mean(self, site: str) -> torch.Tensor:
        """[...]: their mean."""
        return self.tokens(site).double().mean(dim=0)

    def _leave(self, site: str, value: torch.Tensor, reading: TokenBatch) -> None:
        self._read[site].append((reading, value.detach().clone()))

    def _close(self, fingerprint: str) -> None:
        """Sort what was read by sequence and position, however it was fed."""
        self.fingerprint = fingerprint
        readings = [reading for reading, _ in self._read[self.sites[0]]]
        lengths = torch.zeros(max(reading.numbers.stop for reading in readings), dtype=torch.int64)
        for reading in readings:
            beyond = torch.where(reading.real, reading.position + 1, 0).amax(dim=1).cpu()
            lengths[reading.numbers.start : reading.numbers.stop] = torch.maximum(
                lengths[reading.numbers.start : reading.numbers.stop], beyond
            )
        self.lengths = lengths
        for site, held in self._read.items():
            first = held[0][1]
            whole = first.new_zeros(len(lengths), int(lengths.max()), *first.shape[2:])
            for reading, value in held:
                rows = torch.arange(reading.numbers.start, reading.numbers.stop, device=value.device)
                real = reading.real.to(value.device)
                places = rows[:, None].expand_as(real)[real], reading.position.to(value.device)[real]
                whole[places] = value[real].to(whole.device)
            self._whole[site] = whole
        self._read = {}


@contextmanager
def cache_activations(model: nn.Module | Any, *patterns: str, kind: str | None = None) -> Iterator[ActivationCache]:
    """Cache activations while a `with` block runs: `with cache_activations(model, "layers.3.mixer") as cache: ...`.

    For edits that put them in elsewhere (`Mean`, `Resample`, `Patch`); to study values, watch them. They stay on the
    device of their layer, bytes by site, token and channel. Edits that began before the block are in them. What fills
    the rows of a batched `generate` that ended is left out, as in `watch`.

    patterns, kind  as in `find_sites`

    Raises UnknownSite for a pattern without a match, CannotIntervene for a site whose values cannot be replaced. At the
    block's end, NothingRead without a forward pass, and SilentSite where one did not reach every site.
    """
    if not patterns:
        raise BadArgument('cache_activations(model, *patterns): name at least one site, for example "layers.3.mixer".')
    module = module_of(model)
    decoder, calls = decoder_of(module), GenerateCalls(module, decoder_of(module).module)
    require_loaded(module)
    sites = {site.name: site for pattern in patterns for site in find_sites(decoder.module, pattern, kind)}
    values = ActivationCache(tuple(sites))
    with ExitStack() as hooks:
        hooks.enter_context(running_on_cpu(decoder.family))
        places = InterventionPoints(decoder, hooks)
        for name, site in sites.items():
            places.value(site, partial(values._leave, name))
        passes = PassTracker(places, calls)
        calls.listen(hooks)
        passes.reader.embedded.listen(decoder.module.get_input_embeddings(), hooks)
        yield values
    passes.reader.checks.settle()
    passes.require_read("cache_activations")
    if missed := passes.missed(places.fired):
        raise SilentSite(f"take: {missed}")
    values._close(passes.reader.prompts_hash)
