"""Seeded requests on CPU: a draw that vLLM drops is taken back.

vLLM computes a long prompt, or many at once, in parts. It samples a token after each part and drops
it, and then turns the generator of a seeded request back, by an offset, which generators on CPU do
not have: the worker ends with "CPU Generator does not use offset", and the server with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from art_vllm_cpu.differences import difference

log = logging.getLogger("vllm.art_cpu_seeds")
# Parameters of what is wrapped, as vLLM 0.32 has them.
EXPECTED = {
    "_sample": "self, logits, spec_decode_metadata",
    "_bookkeeping_sync": (
        "self, scheduler_output, sampler_output, logits, hidden_states, num_scheduled_tokens"
    ),
}


def mend(runner: type) -> None:
    """Have a model runner on CPU set such a generator back to where it was; once.

    Where vLLM is not what this was written for, it is not changed, with a warning.
    """
    if getattr(runner, "_art_seeds", False):
        return
    if problem := difference(runner, EXPECTED):
        log.warning(
            "art-vllm-cpu leaves seeded requests as they are: %s. Stock vLLM 0.32 ends on CPU when "
            "the prompt of a request with a seed is computed in parts.",
            problem,
        )
        return
    sample, bookkeep = runner._sample, runner._bookkeeping_sync  # type: ignore[attr-defined]

    def _sample(self: Any, *given: Any, **named: Any) -> Any:
        before = [(g, g.get_state()) for g in _dropped(self).values()]
        sampled = sample(self, *given, **named)
        for generator, state in before:
            generator.set_state(state)
        return sampled

    def _bookkeeping_sync(self: Any, *given: Any, **named: Any) -> Any:
        batch = self.input_batch
        every, dropped = batch.generators, _dropped(self)
        batch.generators = {row: g for row, g in every.items() if row not in dropped}
        try:
            return bookkeep(self, *given, **named)
        finally:
            batch.generators = every

    runner._sample = _sample  # type: ignore[attr-defined]
    runner._bookkeeping_sync = _bookkeeping_sync  # type: ignore[attr-defined]
    runner._art_seeds = True  # type: ignore[attr-defined]
    log.info("seeds on CPU: a draw that is dropped is taken back")


def _dropped(runner: Any) -> Mapping[int, torch.Generator]:
    """The generators, by row of the batch, of requests whose prompt is not computed to its end."""
    batch = runner.input_batch
    mask = runner.discard_request_mask.np[: batch.num_reqs]
    return {row: g for row, g in batch.generators.items() if row < len(mask) and mask[row]}
