"""Choose how the embedded engine computes a model's next tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from art_local.engine.cohorts import CacheForward
from art_local.engine.exact import ExactSlotForward, is_exact
from art_local.engine.forward import Forward, SlotForward
from art_local.engine.layer_types import cache_parameter, slots_hold
from art_local.engine.recompute import RecomputeForward
from art_local.engine.trial import is_right
from art_local.models.load import RotaryLengths, rotary_lengths

log = logging.getLogger("art_local")


def make_forward(module: Any, *, exact: bool = False) -> Forward:
    """Return the fastest of the forward passes that give a model's log-probs of whole texts, and
    with `exact` the same bits whatever else is computed.
    """
    for kind in _with_cache(module, exact=exact):
        forward: Forward = kind(module)
        if is_right(forward) and (not exact or is_exact(forward)):
            return forward
        forward.detach()
    log.warning(
        "%s has no cache that the embedded engine can use: it computes whole sequences for each "
        "token, which is slow",
        type(module).__name__,
    )
    return RecomputeForward(module, apart=exact)


def _with_cache(module: Any, *, exact: bool) -> Iterator[Callable[[Any], Forward]]:
    if slots_hold(module):
        yield ExactSlotForward if exact else SlotForward
    # keys in a cache have the rotary factors of the pass that made them
    if cache_parameter(module) and rotary_lengths(module.config) == RotaryLengths():
        yield partial(CacheForward, apart=exact)
