"""Compare the log-probs of engine and trainer before the first rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

import attrs
import torch  # noqa: TID253

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Sampling, Token
from art_local.engine.protocol import LocalEngine
from art_local.training.policy import Policy

Lock = Callable[[], AbstractContextManager[Any]]
TEXT = "The quick brown fox jumps over the lazy dog; then it counts: one, two, three,"
TOKENS = 24
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 0.25}
"""Limits of the mean difference. In bf16 rounding causes 0.03 to 0.08, sometimes more with so few
tokens; other weights cause 0.3 and more.
"""


@attrs.frozen(kw_only=True)
class Agreement:
    """The difference of the engine's and the trainer's log-probs of the same tokens, in nats."""

    mean: float
    largest: float
    tokens: int


def compare(
    engine: LocalEngine,
    policy: Policy,
    prompt_ids: Sequence[int],
    adapter: str,
    lock: Lock = nullcontext,
) -> Agreement:
    """Sample from the engine, then compute the same tokens' log-probs in the trainer, under `lock`.

    Blocks; not to be called inside an event loop.
    """
    tokens = asyncio.run(_sampled(engine, prompt_ids, adapter))
    ids = [*prompt_ids, *(token.id for token in tokens)]
    device = policy.device
    ids_S = torch.tensor(ids, device=device)
    rows_R = torch.arange(len(prompt_ids) - 1, len(ids) - 1, device=device)
    with lock(), torch.no_grad():
        logprobs_R, _ = policy.logprobs(ids_S[None], rows_R, ids_S[rows_R + 1], chunk_size=256)
    engine_R = torch.tensor([token.logprob for token in tokens])
    difference_R = (logprobs_R.float().cpu() - engine_R).abs()
    return Agreement(
        mean=float(difference_R.mean()), largest=float(difference_R.max()), tokens=len(tokens)
    )


def check_agreement(
    engine: LocalEngine, policy: Policy, tokenizer: Any, adapter: str, lock: Lock = nullcontext
) -> Agreement:
    """Raise EngineError if engine and trainer do not have the same model."""
    prompt_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    room = engine.context_length - TOKENS - 1
    found = compare(engine, policy, prompt_ids[: max(room, 1)], adapter, lock)
    tolerance = TOLERANCES[policy.dtype]
    if not found.mean <= tolerance:
        raise EngineError(
            f"engine {engine.name!r} and the trainer do not have the same model: over "
            f"{found.tokens} tokens of {adapter!r} their log-probs differ by {found.mean:.3g} in "
            f"the mean and {found.largest:.3g} at most; up to {tolerance} is rounding in "
            f"{str(policy.dtype).removeprefix('torch.')}{_tokenizers(engine, tokenizer)}",
            "Check that the server has this base model, this dtype (--dtype), no quantization and "
            "--logprobs-mode raw_logprobs.",
        )
    return found


def _tokenizers(engine: LocalEngine, tokenizer: Any) -> str:
    """Return whether the engine's own tokenizer, if it has one, returns the same tokens."""
    tokenize = getattr(engine, "tokenize", None)
    if tokenize is None:
        return ""
    engine_ids, ids = tokenize(TEXT), tokenizer.encode(TEXT, add_special_tokens=False)
    if engine_ids == ids:
        return ", and the vocabularies agree"
    place = next((i for i, (a, b) in enumerate(zip(engine_ids, ids, strict=False)) if a != b), 0)
    engine_id, own_id = engine_ids[place : place + 1], ids[place : place + 1]
    return (
        f", and the vocabularies differ: token {place} of a text is {engine_id} in the engine and "
        f"{own_id} in the trainer"
    )


async def _sampled(engine: LocalEngine, prompt_ids: Sequence[int], adapter: str) -> list[Token]:
    sampling = Sampling(max_tokens=TOKENS, seed=0, stream=False)
    async with aclosing(engine.generate(prompt_ids, sampling, adapter)) as tokens:
        return [token async for token in tokens]
