"""Sampling clients as engines of the endpoint: token ids in, tokens with their log-probs out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs

from art_core.endpoint.engine import FinishReason, Sampling, Token
from art_core.errors import EngineError
from art_tinker.costs import Meter
from art_tinker.sdk import Connection, sampled, tinker

_SEEDS = 2**31


@attrs.define(kw_only=True, eq=False)
class TinkerEngine:
    """Samples from the weights of one step; what a request used is metered, whoever waits for it.

    `context` says what the tokens are booked as, "train" or "eval".
    """

    client: Any
    connection: Connection
    meter: Meter
    context: str
    context_length: int

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.Engine`. All tokens come at the end.

        A caller that goes away does not stop the service, which asks money for what it samples: the
        request is waited for and metered in any case.
        """
        del adapter
        if sampling.top_logprobs:
            raise EngineError(
                "Tinker gives the log-prob of the sampled token alone", "Leave out top_logprobs."
            )
        work = asyncio.create_task(self._sampled(prompt_ids, sampling))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        for token in await asyncio.shield(work):
            yield token

    async def close(self) -> None:
        """The session belongs to the backend; nothing to do here."""

    async def _sampled(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Token]:
        types = tinker().types
        parameters = types.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if sampling.seed is None else sampling.seed % _SEEDS,
            stop=list(sampling.stop_token_ids) or None,
        )
        try:
            response = await sampled(
                self.client.sample(
                    prompt=types.ModelInput.from_ints(list(prompt_ids)),
                    num_samples=1,
                    sampling_params=parameters,
                )
            )
        except Exception as error:
            why = self.connection.reason(error, f"sampling at {self.connection.where}")
            raise EngineError(*why.args) from error
        sequence = response.sequences[0]
        # an older SDK does not tell; these are booked at the full price
        cached: int | None = getattr(response, "prompt_cache_hit_tokens", None)
        self.meter.sampled(
            self.context,
            prompt=len(prompt_ids),
            cached=min(cached or 0, len(prompt_ids)),
            sampled=len(sequence.tokens),
        )
        return _tokens(sequence, cached)


def _tokens(sequence: Any, cached: int | None) -> list[Token]:
    ids, logprobs = list(sequence.tokens), sequence.logprobs
    if not ids or logprobs is None or len(logprobs) != len(ids):
        raise EngineError(
            f"the service sampled {len(ids)} tokens with "
            f"{'no' if logprobs is None else len(logprobs)} log-probs"
        )
    finish: FinishReason = "length" if sequence.stop_reason == "length" else "stop"
    tokens = [
        Token(token, min(float(logprob), 0.0), cached_tokens=cached)
        for token, logprob in zip(ids, logprobs, strict=True)
    ]
    return [*tokens[:-1], attrs.evolve(tokens[-1], finish=finish)]
