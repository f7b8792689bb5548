"""Whether a forward pass gives the log-probs of whole texts, and what its cache takes."""

from __future__ import annotations

import torch

from art_local.engine.forward import Forward
from art_local.engine.layer_types import context_length
from art_local.models.device_memory import is_out_of_memory

LENGTH, DECODED = 20, 3
TOLERANCES = {torch.float32: 1e-3}
"""Nats by which log-probs of cached and of whole texts may differ: in fp32 any, else, and with
rounded weights, on average.
"""
TOLERANCE_16_BIT = 0.25


def is_right(forward: Forward) -> bool:
    """Return whether log-probs with a cache are those of the whole text; measure the cache.

    A short text is decoded in two rows that share its beginning.
    """
    try:
        apart = _apart(forward)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        # a model's own code may trip over a cache in any way
        if is_out_of_memory(e):
            raise
        return False
    return apart <= (TOLERANCES[forward.dtype] if _is_exact(forward) else TOLERANCE_16_BIT)


@torch.inference_mode()
def _apart(forward: Forward) -> float:
    length = max(min(LENGTH, context_length(forward.config)), 4)
    ids = [(7 * place + 1) % forward.config.vocab_size for place in range(length)]
    begin = length - min(DECODED, length // 2)
    cache = forward.new_cache()
    cache.reserve(2, length)
    steps = [forward.prefill([ids[:begin]], [0, 0], cache)]
    for token_id in ids[begin:-1]:
        cache.reserve(2, cache.width + 1)
        steps.append(forward.decode([token_id] * 2, cache))
    forward.cache_bytes_per_token = max(cache.bytes_per_token, 1)
    found_T2V, whole_TV = torch.stack(steps), forward.whole(ids)[begin - 1 : -1]
    apart_T2V = (_logprobs(found_T2V) - _logprobs(whole_TV)[:, None]).abs()
    return float(apart_T2V.max() if _is_exact(forward) else apart_T2V.mean())


def _is_exact(forward: Forward) -> bool:
    return forward.dtype in TOLERANCES and not forward.is_rounded


def _logprobs(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)
