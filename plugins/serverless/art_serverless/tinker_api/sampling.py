"""Samples of a prompt: stops, several sequences, and log-probs of the prompt."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import attrs

from art_core import ConfigError
from art_core.endpoint.engine import Sampling, Token
from art_serverless.tinker_api.wire import SampledTokens, sample_output, text_tokens

MAX_SAMPLES = 1024
MAX_TOP = 20
TAIL_TOKENS = 8
"""Tokens in which a stop string is looked for, beyond its own characters."""
_NOT_SERVED = ("topk_prompt_logprobs", "target_prompt_logprobs", "prompt_alt_tokens_k")


@attrs.frozen(kw_only=True)
class Stops:
    """When a sequence ends: at token ids, at texts, and, if `at_end`, at the model's end tokens."""

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    at_end: bool = True

    @classmethod
    def of(cls, given: str | Sequence[str] | Sequence[int] | None) -> Stops:
        """Return the stops of the SDK's `stop`: None is the model's end, [] none at all."""
        if given is None:
            return cls()
        items = [given] if isinstance(given, str) else list(given)
        texts = tuple(item for item in items if isinstance(item, str) and item)
        ids = tuple(item for item in items if isinstance(item, int))
        return cls(ids=ids, texts=texts, at_end=bool(texts))

    def ended(self, tokens: Sequence[int], tokenizer: Any) -> bool:
        """Return whether the last token completes a text that stops."""
        if not self.texts:
            return False
        size = max(map(len, self.texts)) + TAIL_TOKENS
        tail = tokenizer.decode(tokens[-size:])
        return any(text in tail for text in self.texts)


@attrs.frozen(kw_only=True)
class SampleRequest:
    """A valid request for samples."""

    prompt: list[int]
    num_samples: int
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stops: Stops
    topk: int
    prompt_logprobs: bool
    last_n: int | None

    @classmethod
    def of(cls, given: Any, base: Any) -> SampleRequest:
        """Return the request in the SDK's form; ConfigError for what this server does not do."""
        params, prompt = given.sampling_params, text_tokens(given.prompt.chunks)
        for name in _NOT_SERVED:
            if getattr(given, name, None):
                raise ConfigError(f"{name} is not served here", "Leave it out.")
        if params.top_k not in (-1, 0):
            raise ConfigError(f"top_k={params.top_k} is not served here", "Use top_p.")
        if given.record_stability_info:
            raise ConfigError(
                "record_stability_info is for the loss stable_reinforce, which is not served here",
                "Train with importance_sampling, ppo, cispo, gspo or dro.",
            )
        room = base.engine.context_length - len(prompt)
        if not prompt or room < 1:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens; between 1 and "
                f"{base.engine.context_length - 1} fit into the context of {base.name}"
            )
        odd = [token for token in prompt if not 0 <= token < base.vocabulary]
        if odd:
            raise ConfigError(f"token {odd[0]} is outside the vocabulary of {base.vocabulary}")
        _check("num_samples", given.num_samples, 1, MAX_SAMPLES)
        _check("max_tokens", params.max_tokens or 1, 1, math.inf)
        _check("temperature", params.temperature, 0, 100)
        _check("top_p", params.top_p, 0, 1)
        _check("topk_sample_logprobs", given.topk_sample_logprobs, 0, MAX_TOP)
        return cls(
            prompt=prompt,
            num_samples=given.num_samples,
            max_tokens=min(params.max_tokens or room, room),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params.seed,
            stops=Stops.of(params.stop),
            topk=given.topk_sample_logprobs,
            prompt_logprobs=bool(given.prompt_logprobs),
            last_n=given.prompt_logprobs_last_n,
        )


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must be between {low:g} and {high:g}, got {value!r:.80}")


async def samples(request: SampleRequest, base: Any, adapter: str) -> bytes:
    """Sample, and return the response for the SDK. All sequences run at the same time."""
    async with asyncio.TaskGroup() as group:
        scoring = group.create_task(_prompt_logprobs(request, base, adapter))
        running = [
            group.create_task(_sequence(request, base, adapter, number))
            for number in range(request.num_samples)
        ]
    cached = [task.result()[1] for task in running]
    return sample_output(
        [task.result()[0] for task in running], scoring.result(), min(cached), request.topk
    )


async def _sequence(
    request: SampleRequest, base: Any, adapter: str, number: int
) -> tuple[SampledTokens, int]:
    """Sample one sequence; return it, and how many tokens of the prompt were cached.

    The engine ends a sequence at the model's end token. Unless that is a stop, sampling goes on.
    """
    found: list[Token] = []
    ids: list[int] = []
    stopped, going = False, True
    while going:
        sampling = _sampling(request, number, len(ids))
        stream = base.engine.generate([*request.prompt, *ids], sampling, adapter)
        async with aclosing(stream):
            async for token in stream:
                found.append(token)
                ids.append(token.id)
                stopped = request.stops.ended(ids, base.tokenizer)
                if stopped:
                    break
        ended = found[-1].finish == "stop"
        stopped = stopped or (ended and (request.stops.at_end or ids[-1] in request.stops.ids))
        going = ended and not stopped and len(ids) < request.max_tokens
    sequence = SampledTokens(
        tokens=ids,
        logprobs=[token.logprob for token in found],
        tops=[token.top[: request.topk] for token in found],
        stopped=stopped,
    )
    return sequence, max((token.cached_tokens or 0) for token in found)


def _sampling(request: SampleRequest, number: int, done: int) -> Sampling:
    seed = request.seed
    return Sampling(
        max_tokens=request.max_tokens - done,
        temperature=request.temperature,
        top_p=request.top_p,
        # another one for each sequence, and after each end token at which sampling goes on
        seed=None if seed is None else seed * MAX_SAMPLES + number + (done << 32),
        top_logprobs=request.topk,
        stop_token_ids=request.stops.ids,
    )


async def _prompt_logprobs(request: SampleRequest, base: Any, adapter: str) -> list[float] | None:
    if not request.prompt_logprobs:
        return None
    scored = await base.engine.score(request.prompt, adapter) if len(request.prompt) > 1 else []
    found = [math.nan, *scored]
    if request.last_n is not None:
        unasked = len(found) - request.last_n
        found[:unasked] = [math.nan] * max(unasked, 0)
    return found
