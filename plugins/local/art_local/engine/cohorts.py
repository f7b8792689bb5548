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
from art_local.models.device_memory import is_out_of_memory

PROBE, DECODED = 64, 8
TOLERANCES = {torch.float32: 1e-3}
"""Nats by which log-probs of cached and of whole texts may differ on average."""


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
    """Runs a model with the caches that it makes itself, one for all copies of a prompt.

    `probed` is a cache of the model with two rows of `PROBE` tokens, from `own_cache`.
    """

    name = "own cache"

    def __init__(self, module: Any, probed: Any) -> None:
        super().__init__(module)
        self._cache_name = str(cache_parameter(module))
        self.cache_bytes_per_token = max(_held_bytes(probed) // (2 * PROBE), 1)

    def new_cache(self) -> CohortCache:
        """Make an empty cache for this model."""
        return CohortCache()

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: CohortCache
    ) -> torch.Tensor:
        """Compute prompts once each and append `source` [R] copies of them to the cache; logits [R,
        V].
        """
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
        self._last = None
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


@torch.inference_mode()
def own_cache(module: Any) -> Any:
    """Return the cache that a model makes for a short text, in two rows; None when it makes none
    whose rows can be copied, or when log-probs with it are not those of the whole text.
    """
    name = cache_parameter(module)
    if name is None:
        return None
    try:
        cache, apart = _probed(module, name)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        # a model's own code may trip over its cache in any way
        if is_out_of_memory(e):
            raise
        return None
    return cache if apart <= TOLERANCES.get(next(module.parameters()).dtype, 0.25) else None


def _probed(module: Any, name: str) -> tuple[Any, float]:
    """Return a cache that a text was decoded with, and how far its log-probs are from those of the
    whole text on average, in nats.
    """
    device = next(module.parameters()).device
    vocabulary = module.config.get_text_config().vocab_size
    ids_1S = (torch.arange(PROBE, device=device)[None] * 7 + 1) % vocabulary
    cache = module(input_ids=ids_1S[:, :-DECODED], use_cache=True)[name]
    cache.reorder_cache(torch.zeros(2, dtype=torch.long, device=device))
    decoded = [
        module(input_ids=ids_1S[:, place, None].expand(2, 1), **{name: cache}, use_cache=True)
        for place in range(PROBE - DECODED, PROBE)
    ]
    found_2DV = torch.cat([output.logits for output in decoded], 1)
    whole_1DV = module(input_ids=ids_1S, use_cache=False).logits[:, -DECODED:]
    return cache, float((_logprobs(found_2DV) - _logprobs(whole_1DV)).abs().mean())


def _logprobs(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)


def _held_bytes(cache: Any) -> int:
    seen: dict[int, int] = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            tensors = value.values() if isinstance(value, dict) else [value]
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor):
                    seen[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
