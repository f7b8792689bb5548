"""Sampling with a model's own cache: rows that began with the same prompt stay equally long, so one
cache of transformers holds them without padding. That is right for recurrent states, convolutions,
chunks and whatever else the model keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

from art_local.engine.forward import Forward
from art_local.engine.layer_types import cache_parameter

STATE_TOKENS = 256
"""Tokens that bear the memory of a row's recurrent states."""


@attrs.define(eq=False)
class Cohort:
    """Rows of equal length in one cache of transformers.

    `slots` are the batch's rows; `places` where each stands in `cache`, which has `size` rows until
    `gather` puts the cache into that order.
    """

    cache: Any
    slots: list[int]
    places: list[int]
    size: int = 1

    def gather(self, device: torch.device) -> None:
        """Let the cache have exactly the rows of this cohort, in their order."""
        wanted = list(range(len(self.slots)))
        if self.places != wanted or self.size != len(wanted):
            self.cache.reorder_cache(torch.tensor(self.places, device=device))
            self.places, self.size = wanted, len(wanted)


class CohortCache:
    """The cohorts of one batch; `lengths[i]` is how many tokens row i holds."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.cohorts: list[Cohort] = []

    @property
    def width(self) -> int:
        """The longest sequence held."""
        return max(self.lengths, default=0)

    @property
    def bytes_per_token(self) -> int:
        """The memory that a token takes, with its share of a row's state that does not grow."""
        grown, fixed = map(sum, zip(*map(_held_bytes, self.cohorts), strict=True))
        rows = max(len(self.lengths), 1)
        return grown // max(sum(self.lengths), 1) + fixed // (rows * STATE_TOKENS)

    def reserve(self, rows: int, width: int) -> None:
        """The model's own caches grow by themselves."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        last = len(self.lengths) - 1
        for cohort in self.cohorts:
            if row in cohort.slots:
                place = cohort.slots.index(row)
                del cohort.slots[place], cohort.places[place]
                break
        self.cohorts = [cohort for cohort in self.cohorts if cohort.slots]
        for cohort in self.cohorts:
            cohort.slots = [row if slot == last else slot for slot in cohort.slots]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()


class CacheForward(Forward):
    """Runs a model with the caches that it makes itself, one for all copies of a prompt, or with
    `apart` one for each row.
    """

    name = "own cache"

    def __init__(self, module: Any, *, apart: bool = False) -> None:
        super().__init__(module)
        self._apart = apart
        self._cache_name = str(cache_parameter(module))

    def new_cache(self) -> CohortCache:
        """Make an empty cache for this model."""
        return CohortCache()

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: CohortCache
    ) -> torch.Tensor:
        """Compute prompts once each and append `source` [R] copies of them to the cache; logits [R,
        V].
        """
        if self._apart and len(source) > 1:
            return torch.cat([self.prefill([prompts[i]], [0], cache) for i in source])
        first, found = len(cache.lengths), []
        cache.lengths += [len(prompts[i]) for i in source]
        for number, prompt in enumerate(prompts):
            output = self.module(input_ids=self.padded([prompt]), use_cache=True)
            slots = [first + row for row, i in enumerate(source) if i == number]
            cache.cohorts.append(Cohort(output[self._cache_name], slots, places=[0] * len(slots)))
            found.append(output.logits[0, 0])
        return torch.stack(found)[torch.tensor(source, device=self.device)]

    def decode(self, token_ids: Sequence[int], cache: CohortCache) -> torch.Tensor:
        """Append one token to each row of the cache; logits [N, V]."""
        self.last.places = None
        cache.lengths = [length + 1 for length in cache.lengths]
        found: list[Any] = [None] * len(token_ids)
        for cohort in cache.cohorts:
            cohort.gather(self.device)
            ids = torch.tensor([[token_ids[slot]] for slot in cohort.slots], device=self.device)
            inputs = {"input_ids": ids, self._cache_name: cohort.cache}
            logits = self.module(**inputs, use_cache=True).logits
            for slot, row_V in zip(cohort.slots, logits[:, 0], strict=True):
                found[slot] = row_V
        return torch.stack(found)


def _held_bytes(cohort: Cohort) -> tuple[int, int]:
    """Return the bytes of a cohort's keys and values, and of its other states."""
    sizes: tuple[dict[int, int], dict[int, int]] = {}, {}
    for layer in cohort.cache.layers:
        for name, value in vars(layer).items():
            tensors = value.values() if isinstance(value, dict) else [value]
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor):
                    kind = sizes[name not in ("keys", "values")]
                    kind[id(tensor)] = tensor.numel() * tensor.element_size()
    grown, fixed = sizes
    return sum(grown.values()), sum(fixed.values())
