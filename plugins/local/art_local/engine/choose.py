"""Choose how the embedded engine computes a model's next tokens."""

from __future__ import annotations

import logging
from typing import Any

from art_local.engine.cohorts import CacheForward, own_cache
from art_local.engine.forward import Forward, SlotForward
from art_local.engine.layer_types import slots_hold
from art_local.engine.recompute import RecomputeForward
from art_local.models.rotary import RotaryLengths, rotary_lengths

log = logging.getLogger("art_local")


def make_forward(module: Any) -> Forward:
    """Return the fastest of the forward passes that are right for a model."""
    if slots_hold(module):
        return SlotForward(module)
    # what a cache holds has the rotary factors of the pass that made it
    fixed = rotary_lengths(module.config) == RotaryLengths()
    probed = own_cache(module) if fixed else None
    if probed is not None:
        return CacheForward(module, probed)
    log.warning(
        "%s has no cache that the embedded engine can use: it computes whole sequences for each "
        "token, which is slow",
        type(module).__name__,
    )
    return RecomputeForward(module)
