"""Last stop of the endpoint: deltas become OpenAI's JSON, whole or as a stream of chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import attrs

from art_core.base.images import image_digest
from art_core.endpoint.answer import Answer
from art_core.endpoint.engine import ChatTokenizer, Token
from art_core.endpoint.prompt import Prepared
from art_core.endpoint.request import finite
from art_core.endpoint.sampling import Delta, Step
from art_core.endpoint.text import token_text
from art_core.endpoint.thoughts import FIELD


@attrs.define
class _Whole:
    tokens: list[Token] = attrs.field(factory=list)
    answer: Answer = attrs.field(factory=lambda: Answer(""))
    finish_reason: str | None = None
    stop_reason: str | None = None

    def add(self, delta: Delta) -> None:
        self.tokens += delta.tokens
        self.answer = delta.answer or self.answer
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


async def completion(prepared: Prepared, steps: AsyncIterator[Step]) -> dict[str, Any]:
    """Return a chat.completion. With `return_token_ids` it has `prompt_token_ids` (and the digests
    of the prompt's images as `prompt_images`), and each choice `token_ids`.
    """
    wholes = [_Whole() for _ in prepared.samplings]
    async for step in steps:
        wholes[step.index].add(step.delta)
    return {
        **_head(prepared, "chat.completion"),
        "choices": [_choice(prepared, index, whole) for index, whole in enumerate(wholes)],
        "usage": _usage(prepared, [token for whole in wholes for token in whole.tokens]),
        **_prompt(prepared),
    }


async def chunks(
    prepared: Prepared, steps: AsyncIterator[Step]
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield chat.completion.chunk objects: first the roles and the prompt's ids, then the tokens,
    then the usage if it was asked for.
    """
    head = _head(prepared, "chat.completion.chunk")
    if prepared.request.include_usage:
        head["usage"] = None
    sampled: list[Token] = []
    started = False
    async for step in steps:
        if not started:
            started = True
            opening = {"role": "assistant", "content": ""}
            choices = [
                _chunk_choice(prepared, index, opening, Delta())
                for index in range(len(prepared.samplings))
            ]
            # before the usage is known, which comes last
            counted = {"prompt_tokens": len(prepared.prompt_ids)}
            yield {**head, "choices": choices, **counted, **_prompt(prepared)}
        sampled += step.delta.tokens
        yield {
            **head,
            "choices": [_chunk_choice(prepared, step.index, _delta(step.delta), step.delta)],
        }
    if prepared.request.include_usage:
        yield {**head, "choices": [], "usage": _usage(prepared, sampled)}


def _head(prepared: Prepared, kind: str) -> dict[str, Any]:
    head: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": prepared.served.name,
    }
    if prepared.served.policy_version is not None:
        head["policy_version"] = prepared.served.policy_version
    raw = {} if prepared.request.raw_prompt is None else {"raw_prompt": True}
    return head | raw | _sampling(prepared)


def _sampling(prepared: Prepared) -> dict[str, Any]:
    """Return what the draw had and the log-probs do not have, and the grammar, which both have."""
    request, grammar = prepared.request, prepared.samplings[0].grammar
    other: dict[str, Any] = {
        name: value
        for name, free in (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0))
        if (value := getattr(request, name)) != free
    }
    if request.logit_bias:
        other["logit_bias"] = {str(token): bias for token, bias in request.logit_bias}
    found: dict[str, Any] = {"sampling": other} if other else {}
    return found | ({"grammar": grammar} if grammar and request.return_token_ids else {})


def _prompt(prepared: Prepared) -> dict[str, Any]:
    if not prepared.request.return_token_ids:
        return {}
    images = {"prompt_images": [*map(image_digest, prepared.images)]} if prepared.images else {}
    return {"prompt_token_ids": prepared.prompt_ids, **images}


def _usage(prepared: Prepared, tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the token counts. The prompt counts once, so its cached tokens are the fewest that one
    of the n choices found in the engine's cache.
    """
    prompt, sampled = len(prepared.prompt_ids), len(tokens)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
    }
    cached = [token.cached_tokens for token in tokens if token.cached_tokens is not None]
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": min(cached)}
    return usage


def _choice(prepared: Prepared, index: int, whole: _Whole) -> dict[str, Any]:
    answer = whole.answer
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.thoughts is not None:
        message[FIELD] = answer.thoughts.text
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [call.as_dict() for call in answer.calls]
    tokens = tuple(whole.tokens)
    choice = {"index": index, "message": message, "finish_reason": whole.finish_reason}
    return choice | _stop(whole) | _tokens(prepared, tokens)


def _chunk_choice(
    prepared: Prepared, index: int, delta: dict[str, Any], step: Delta
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": step.finish_reason}
    return choice | _stop(step) | _tokens(prepared, step.tokens)


def _stop(ended: _Whole | Delta) -> dict[str, Any]:
    """Return the stop string that ended a choice, under vLLM's name."""
    return {} if ended.stop_reason is None else {"stop_reason": ended.stop_reason}


def _delta(delta: Delta) -> dict[str, Any]:
    shown: dict[str, Any] = {"content": delta.shown.content} if delta.shown.content else {}
    if delta.shown.thoughts is not None:
        shown[FIELD] = delta.shown.thoughts
    if delta.answer is not None and delta.answer.calls:
        shown["tool_calls"] = [
            {"index": place, **call.as_dict()} for place, call in enumerate(delta.answer.calls)
        ]
    return shown


def _tokens(prepared: Prepared, tokens: tuple[Token, ...]) -> dict[str, Any]:
    """Return log-probs and ids as asked for. A chunk without tokens has no log-probs."""
    request = prepared.request
    entries = (
        _logprob_entries(tokens, prepared.served.tokenizer) if request.logprobs and tokens else None
    )
    found: dict[str, Any] = {"logprobs": {"content": entries, "refusal": None} if entries else None}
    if request.return_token_ids:
        found["token_ids"] = [token.id for token in tokens]
    return found


def _logprob_entries(tokens: tuple[Token, ...], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Return OpenAI's logprobs.content: one entry per token id, with the end token."""
    entries = []
    for token in tokens:
        top = [_entry(tokenizer, token_id, logprob) for token_id, logprob in token.top]
        entries.append({**_entry(tokenizer, token.id, token.logprob), "top_logprobs": top})
    return entries


def _entry(tokenizer: ChatTokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    text, text_bytes = token_text(tokenizer, token_id)
    return {"token": text, "logprob": finite(logprob), "bytes": text_bytes}
