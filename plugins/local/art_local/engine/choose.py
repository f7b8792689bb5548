"""Choose how the embedded engine computes a model's next tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from art_local.engine.cohorts import CacheForward
from art_local.engine.forward import Forward, SlotForward
from art_local.engine.layer_types import cache_parameter, slots_hold
from art_local.engine.recompute import RecomputeForward
from art_local.engine.trial import is_right
from art_local.models.load import RotaryLengths, rotary_lengths

log = logging.getLogger("art_local")


def make_forward(module: Any) -> Forward:
    """Return the fastest of the forward passes that give a model's log-probs of whole texts."""
    for kind in _with_cache(module):
        forward: Forward = kind(module)
        if is_right(forward):
            return forward
        forward.detach()
    log.warning(
        "%s has no cache that the embedded engine can use: it computes whole sequences for each "
        "token, which is slow",
        type(module).__name__,
    )
    return RecomputeForward(module)


def _with_cache(module: Any) -> Iterator[type[SlotForward | CacheForward]]:
    if slots_hold(module):
        yield SlotForward
    # keys in a cache have the rotary factors of the pass that made them
    if cache_parameter(module) and rotary_lengths(module.config) == RotaryLengths():
        yield CacheForward
