"""`cache_activations`: store the activations at chosen sites, for interventions that put them in elsewhere."""

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
from qwenlab.errors import BadArgument, SiteNotReached, UnknownSite
from qwenlab.interventions.points import InterventionPoints


class ActivationCache:
    """Activations at sites, of the texts that a model read in a `cache_activations` block.

    sites        their names
    lengths      int [sequence]: tokens of each sequence, padding not counted
    fingerprint  hash of the tokens read, as in `prompts_hash`
    """

    def __init__(self, sites: tuple[str, ...]) -> None:
        self.sites, self.fingerprint = sites, ""
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self._pieces: dict[str, list[tuple[TokenBatch, torch.Tensor]]] = {site: [] for site in sites}
        self._values: dict[str, torch.Tensor] = {}

    def __getitem__(self, site: str) -> torch.Tensor:
        """[sequence, position, ...]: the values at a site, 0 after the end of a sequence. Raises UnknownSite."""
        if site not in self._values:
            if site not in self.sites:
                raise UnknownSite(
                    f"This cache has no values at {site}, only at {', '.join(self.sites)}.\n"
                    "Cache the sites that the intervention changes."
                )
            raise BadArgument("The cache_activations block is still running.\nUse its values after the block.")
        return self._values[site]

    def __repr__(self) -> str:
        return f"ActivationCache({self.fingerprint})"

    def tokens(self, site: str) -> torch.Tensor:
        """[token, ...]: the values of all tokens, sequence after sequence."""
        values = self[site]
        return values[(torch.arange(values.shape[1]) < self.lengths[:, None]).to(values.device)]

    def mean(self, site: str) -> torch.Tensor:
        """[...]: the mean over all tokens, float64."""
        return self.tokens(site).double().mean(dim=0)

    def _append(self, site: str, value: torch.Tensor, tokens: TokenBatch) -> None:
        self._pieces[site].append((tokens, value.detach().clone()))

    def _close(self, fingerprint: str) -> None:
        """Sort the pieces by sequence and position, however the texts were split into passes."""
        self.fingerprint = fingerprint
        batches = [tokens for tokens, _ in self._pieces[self.sites[0]]]
        self.lengths = torch.zeros(max(tokens.numbers.stop for tokens in batches), dtype=torch.int64)
        for tokens in batches:
            rows = slice(tokens.numbers.start, tokens.numbers.stop)
            ends = torch.where(tokens.real, tokens.position + 1, 0).amax(dim=1).cpu()
            self.lengths[rows] = torch.maximum(self.lengths[rows], ends)
        for site, pieces in self._pieces.items():
            first = pieces[0][1]
            values = first.new_zeros(len(self.lengths), int(self.lengths.max()), *first.shape[2:])
            for tokens, value in pieces:
                sequence = torch.arange(tokens.numbers.start, tokens.numbers.stop, device=value.device)
                real = tokens.real.to(value.device)
                index = sequence[:, None].expand_as(real)[real], tokens.position.to(value.device)[real]
                values[index] = value[real].to(values.device)
            self._values[site] = values
        self._pieces = {}


@contextmanager
def cache_activations(model: nn.Module | Any, *patterns: str, kind: str | None = None) -> Iterator[ActivationCache]:
    """Cache activations while a `with` block runs: `with cache_activations(model, "layers.3.mixer") as cache: ...`.

    For interventions that put them in elsewhere (`Mean`, `Resample`, `Patch`); to study activations, use `watch`. They
    stay on the device of their layer, and take memory by site, token and channel. Interventions of outer blocks are
    in them. The fillers of rows that ended in a batched `generate` are left out, as in `watch`.

    patterns, kind  as in `find_sites`

    Raises UnknownSite for a pattern without a match, CannotIntervene for a site whose values cannot be replaced. At the
    block's end, NoForwardPass without a forward pass, and SiteNotReached if a pass did not reach every site.
    """
    if not patterns:
        raise BadArgument('cache_activations(model, *patterns): name at least one site, for example "layers.3.mixer".')
    module = module_of(model)
    decoder, calls = decoder_of(module), GenerateCalls(module, decoder_of(module).module)
    require_loaded(module)
    sites = {site.name: site for pattern in patterns for site in find_sites(decoder.module, pattern, kind)}
    cache = ActivationCache(tuple(sites))
    with ExitStack() as hooks:
        hooks.enter_context(running_on_cpu(decoder.family))
        points = InterventionPoints(decoder, hooks, calls)
        for name, site in sites.items():
            points.value(site, partial(cache._append, name))
        points.follow_passes()
        calls.listen(hooks)
        tracker = points.passes.tracker
        tracker.embedded.listen(decoder.module.get_input_embeddings(), hooks)
        yield cache
    tracker.checks.settle()
    points.passes.require_any("cache_activations")
    if missed := points.missed(points.counts):
        raise SiteNotReached(f"cache_activations: {missed}")
    cache._close(tracker.prompts_hash)
