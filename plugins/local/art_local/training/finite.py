"""Checks that weights and their log-probs are finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_core.base.errors import BackendError

if TYPE_CHECKING:
    from art_local.training.optimizer import Update
    from art_local.training.policy import Policy

PROBE_TOKENS = 16
"""Each of them is computed with all weights."""
WEIGHTS, MOMENTS = "weights", "optimizer moments"
MAX_WEIGHT = torch.finfo(torch.float32).max ** 0.5
"""The square of a larger weight is infinite in fp32: norms of hidden states are then 0 or NaN."""


def not_finite(tensors: Mapping[str, Tensor], limit: float = MAX_WEIGHT) -> list[str]:
    """Return the names of the tensors with a value that is NaN or beyond the limit."""
    return [name for name, value in tensors.items() if value.numel() and not _within(value, limit)]


class UpdateCheck:
    """Checks a step that was not taken yet: weights, moments and log-probs must be finite, and
    weights within `MAX_WEIGHT`.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._counts: Counter[str] = Counter()
        self._odd: dict[str, list[str]] = {WEIGHTS: [], MOMENTS: []}

    def weights(self, updates: Iterable[Update]) -> Iterator[tuple[str, Tensor]]:
        """Yield the new weights by name, and note which of them, and of their moments, are of no
        use.
        """
        largest = torch.finfo(torch.float32).max
        for update in updates:
            self._note(WEIGHTS, update.name, update.weight, MAX_WEIGHT)
            for kind, moment in update.moments.items():
                self._note(MOMENTS, f"{kind}.{update.name}", moment, largest)
            yield update.name, update.weight

    def finish(self, policy: Policy, ids: tuple[int, ...]) -> None:
        """Raise BackendError for a policy that computes with the new weights, unless all that was
        noted, its served weights and the log-probs of `ids` are of use.
        """
        self._raise(WEIGHTS, self._odd[WEIGHTS], self._counts[WEIGHTS])
        served = policy.serving
        self._raise("served weights", not_finite(served), len(served))
        self._raise(MOMENTS, self._odd[MOMENTS], self._counts[MOMENTS])
        if not policy.is_finite_on(ids[:PROBE_TOKENS]):
            raise _error("the log-probs of the new weights", self._learning_rate)

    def _note(self, kind: str, name: str, tensor: Tensor, limit: float) -> None:
        self._counts[kind] += 1
        self._odd[kind] += not_finite({name: tensor}, limit)

    def _raise(self, kind: str, odd: list[str], count: int) -> None:
        if odd:
            raise _error(f"{len(odd)} of {count} {kind}, {odd[0]!r} first,", self._learning_rate)


def _error(what: str, learning_rate: float) -> BackendError:
    return BackendError(
        f"the step does not count: after it {what} are not finite or too large; the weights stay "
        "as they were",
        f"Lower learning_rate (now {learning_rate:g}).",
    )


@torch.no_grad()
def _within(tensor: Tensor, limit: float) -> bool:
    low, high = tensor.detach().aminmax()  # NaN if there is one
    return bool((low.float() >= -limit) & (high.float() <= limit))
