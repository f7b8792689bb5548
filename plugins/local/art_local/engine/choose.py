"""Choose how the embedded engine computes a model's next tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from art_core.base.errors import ConfigError
from art_local.engine.cohorts import CacheForward
from art_local.engine.decoder import is_decoder, packed_bytes
from art_local.engine.exact import ExactSlotForward, is_exact
from art_local.engine.forward import Forward, SlotForward
from art_local.engine.fused import DECODERS, FusedForward
from art_local.engine.layer_types import cache_parameter, slots_hold
from art_local.engine.recompute import RecomputeForward
from art_local.engine.trial import is_right
from art_local.models.load import RotaryLengths, rotary_lengths

PACKED_SHARE = 0.5
"""The share of the free memory that packed weights may take."""

log = logging.getLogger("art_local")


def make_forward(
    module: Any, *, exact: bool = False, free_bytes: int | None = None, int8: bool = False
) -> Forward:
    """Return the fastest of the forward passes that give a model's log-probs of whole texts, and
    with `exact` the same bits whatever else is computed.

    `free_bytes` limits what packed weights may take; None: no limit. With `int8` weights are
    rounded to 8 bits; ConfigError for a model with which that is not possible.
    """
    if int8:
        return _rounded(module)
    for kind in _with_cache(module, exact=exact, free_bytes=free_bytes):
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


def _rounded(module: Any) -> Forward:
    if _is_fusible(module):
        forward = FusedForward(module, int8=True)
        if is_right(forward):
            return forward
    raise ConfigError(
        f"engine_weights='int8' is for models on a CPU whose layers are built as Llama's, and "
        f"{type(module).__name__} is not such a model, or its log-probs become others",
        "Leave engine_weights out.",
    )


def _is_fusible(module: Any) -> bool:
    static = rotary_lengths(module.config) == RotaryLengths()
    return slots_hold(module) and is_decoder(module) and static


def _with_cache(
    module: Any, *, exact: bool, free_bytes: int | None
) -> Iterator[Callable[[Any], Forward]]:
    if not exact and _is_fusible(module):
        if _fits(module, free_bytes):
            yield FusedForward
    elif not exact and next(module.parameters()).device.type == "cpu":
        log.info("%s is sampled by its own layers, which can't be fused", type(module).__name__)
    if slots_hold(module):
        yield ExactSlotForward if exact else SlotForward
    # keys in a cache have the rotary factors of the pass that made them
    if cache_parameter(module) and rotary_lengths(module.config) == RotaryLengths():
        yield partial(CacheForward, apart=exact)


def _fits(module: Any, free_bytes: int | None) -> bool:
    needed = DECODERS * packed_bytes(module)
    if free_bytes is None or needed <= free_bytes * PACKED_SHARE:
        return True
    log.warning(
        "sampling uses the weights as they are, which is slower: packed weights take %.1f GB, "
        "and of %.1f GB of free memory at most half is used for them",
        needed / 1e9,
        free_bytes / 1e9,
    )
    return False
