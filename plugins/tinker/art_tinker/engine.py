"""The endpoint's engine over a sampling client: token ids in, tokens with their log-probs out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import attrs

from art_core.base.errors import EngineError
from art_core.endpoint.engine import FinishReason, Sampling, Token
from art_tinker.costs import TinkerMeter
from art_tinker.sdk import Connection, requested, tinker

_SEEDS = 2**31


@attrs.define(kw_only=True, eq=False)
class TinkerEngine:
    """Samples from the weights of one step, and adds the used tokens to the meter.

    The tokens are booked under `context`, "train" or "eval". `unbooked` has a future for each
    request whose tokens are not booked yet.
    """

    client: Any
    connection: Connection
    meter: TinkerMeter
    context: str
    context_length: int
    unbooked: set[Future[None]]

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.Engine`. All tokens come at the end.

        Cancelling does not stop the service, which bills the sampled tokens. So the request is
        booked in any case, when it is done.
        """
        del adapter
        for token in await self._sampled(prompt_ids, sampling):
            yield token

    async def score(self, ids: Sequence[int], adapter: str) -> Sequence[float]:
        """Return the log-probs of a text; see `art_core.endpoint.engine.ScoringEngine`. Its tokens
        are billed as a prompt's.
        """
        del adapter
        text = tinker().types.ModelInput.from_ints(list(ids))
        booked: Future[None] = Future()
        try:
            request = requested(self.client.compute_logprobs(text))
            self.unbooked.add(booked)
            request.add_done_callback(partial(self._book_text, booked, len(ids)))
            found = await asyncio.shield(asyncio.wrap_future(request))
        except Exception as error:
            reason = self.connection.reason(error, f"scoring at {self.connection.where}")
            raise EngineError(*reason.args) from error
        logprobs = list(found)[1:]
        if len(logprobs) != len(ids) - 1 or None in logprobs:
            raise EngineError(f"the service gave {len(logprobs)} log-probs of {len(ids)} tokens")
        return [min(float(logprob), 0.0) for logprob in logprobs]

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
        top = sampling.top_logprobs  # older SDKs raise TypeError for this parameter
        try:
            request = requested(
                self.client.sample(
                    prompt=types.ModelInput.from_ints(list(prompt_ids)),
                    num_samples=1,
                    sampling_params=parameters,
                    **({"topk_sample_logprobs": top} if top else {}),
                )
            )
            booked: Future[None] = Future()
            self.unbooked.add(booked)
            # Called on the SDK's own thread, which outlives the endpoint's event loop.
            request.add_done_callback(partial(self._book, booked, len(prompt_ids)))
            response = await asyncio.shield(asyncio.wrap_future(request))
        except Exception as error:
            reason = self.connection.reason(error, f"sampling at {self.connection.where}")
            raise EngineError(*reason.args) from error
        return _tokens(response.sequences[0], _cached(response))

    def _book_text(self, booked: Future[None], tokens: int, done: Future[Any]) -> None:
        try:
            if not done.cancelled() and done.exception() is None:
                self.meter.sampled(self.context, prompt=tokens, cached=0, sampled=0)
        finally:
            self.unbooked.discard(booked)
            booked.set_result(None)

    def _book(self, booked: Future[None], prompt: int, done: Future[Any]) -> None:
        try:
            if not done.cancelled() and done.exception() is None:
                response = done.result()
                self.meter.sampled(
                    self.context,
                    prompt=prompt,
                    cached=min(_cached(response) or 0, prompt),
                    sampled=len(response.sequences[0].tokens),
                )
        finally:
            self.unbooked.discard(booked)
            booked.set_result(None)


def _cached(response: Any) -> int | None:
    """Return the number of prompt tokens from the service's cache, None with older SDKs; these
    tokens are then booked at the full price.
    """
    cached: int | None = getattr(response, "prompt_cache_hit_tokens", None)
    return cached


def _tokens(sequence: Any, cached: int | None) -> list[Token]:
    ids, logprobs = list(sequence.tokens), sequence.logprobs
    if not ids or logprobs is None or len(logprobs) != len(ids):
        raise EngineError(
            f"the service sampled {len(ids)} tokens with "
            f"{'no' if logprobs is None else len(logprobs)} log-probs"
        )
    finish: FinishReason = "length" if sequence.stop_reason == "length" else "stop"
    tops = getattr(sequence, "topk_logprobs", None) or [None] * len(ids)
    tokens = [
        Token(token, min(float(logprob), 0.0), tuple(top or ()), cached_tokens=cached)
        for token, logprob, top in zip(ids, logprobs, tops, strict=True)
    ]
    return [*tokens[:-1], attrs.evolve(tokens[-1], finish=finish)]
