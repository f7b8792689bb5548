"""Whether weights are of use: finite themselves, and with finite log-probs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_core.base.errors import BackendError

if TYPE_CHECKING:
    from art_local.training.policy import Policy

PROBE_TOKENS = 64
MAX_WEIGHT = torch.finfo(torch.float32).max ** 0.5
"""The square of a larger one is infinite in fp32: norms of the hidden states are then 0 or NaN."""


def not_finite(tensors: Mapping[str, Tensor], limit: float = MAX_WEIGHT) -> list[str]:
    """Return the names of the tensors that have a value which is NaN, or not within the limit."""
    return [name for name, value in tensors.items() if value.numel() and not _within(value, limit)]


def check_weights(
    policy: Policy, moments: Mapping[str, Tensor], ids: tuple[int, ...], learning_rate: float
) -> None:
    """Raise BackendError unless the policy's weights, the optimizer's moments and the log-probs of
    `ids` are finite, and weights within `MAX_WEIGHT`.
    """
    largest = torch.finfo(torch.float32).max
    for kind, tensors, limit in (
        ("weights", policy.trained(), MAX_WEIGHT),
        ("served weights", policy.serving, MAX_WEIGHT),
        ("optimizer moments", moments, largest),
    ):
        if odd := not_finite(tensors, limit):
            raise _error(f"{len(odd)} of {len(tensors)} {kind}, {odd[0]!r} first,", learning_rate)
    if not policy.is_finite_on(ids[:PROBE_TOKENS]):
        raise _error("the log-probs of the new weights", learning_rate)


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
