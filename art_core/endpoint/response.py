"""Last stop of the endpoint: deltas become OpenAI's JSON, whole or as a stream of chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import attrs

from art_core.endpoint.answer import Answer
from art_core.endpoint.chat import Prepared
from art_core.endpoint.choice import Delta, logprob_entries
from art_core.endpoint.engine import Token
from art_core.endpoint.sampling import Step
from art_core.endpoint.thoughts import FIELD


@attrs.define
class _Whole:
    tokens: list[Token] = attrs.field(factory=list)
    answer: Answer = attrs.field(factory=lambda: Answer(""))
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        self.tokens += delta.tokens
        self.answer = delta.answer or self.answer
        self.finish_reason = delta.finish_reason


async def completion(prepared: Prepared, steps: AsyncIterator[Step]) -> dict[str, Any]:
    """Collect a chat.completion. With `return_token_ids`: `prompt_token_ids` at the top,
    `token_ids` in each choice.
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
    """Stream chat.completion.chunk objects: roles (and the prompt's ids) first, then tokens, then
    usage if asked.
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
            yield {**head, "choices": choices, **_prompt(prepared)}
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
    return head | _sampling(prepared)


def _sampling(prepared: Prepared) -> dict[str, Any]:
    """How it was drawn, when that was not by the log-probs told, which are at temperature 1."""
    request = prepared.request
    narrowed = {"temperature": request.temperature, "top_p": request.top_p}
    odd = {name: value for name, value in narrowed.items() if value != 1.0}
    return {"sampling": odd} if odd else {}


def _prompt(prepared: Prepared) -> dict[str, Any]:
    return {"prompt_token_ids": prepared.prompt_ids} if prepared.request.return_token_ids else {}


def _usage(prepared: Prepared, tokens: Sequence[Token]) -> dict[str, Any]:
    """Token counts. The prompt counts once, so of n choices the one that found least of it in the
    engine's cache says how much of it was cached.
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
    return choice | _tokens(prepared, tokens)


def _chunk_choice(
    prepared: Prepared, index: int, delta: dict[str, Any], step: Delta
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": step.finish_reason} | _tokens(
        prepared, step.tokens
    )


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
    """Log-probabilities and ids as asked for; a chunk without tokens has no logprobs, as
    OpenAI's.
    """
    request = prepared.request
    entries = (
        logprob_entries(tokens, prepared.served.tokenizer) if request.logprobs and tokens else None
    )
    found: dict[str, Any] = {"logprobs": {"content": entries, "refusal": None} if entries else None}
    if request.return_token_ids:
        found["token_ids"] = [token.id for token in tokens]
    return found
