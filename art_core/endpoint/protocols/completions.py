"""OpenAI's older Completions: a text or token ids, continued without a chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from itertools import accumulate
from typing import Any

from art_core.endpoint.errors import RequestError, bad_parameter
from art_core.endpoint.protocols.form import EXTENSIONS, Asked, Chunks, Protocol, Received, data
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.request import Known, check_names
from art_core.endpoint.strict_json import json_text

KNOWN = Known(
    parameters=(EXTENSIONS - {"chat_template_kwargs"})
    | {
        "logprobs", "max_tokens", "model", "n", "prompt", "stop", "stream", "stream_options",
        "temperature", "top_p",
    },
    without_effect=frozenset({"user"}),
    neutral={
        "best_of": ((1,), "ask for n choices"),
        "echo": ((False,), "only log-probs of a text have it: give max_tokens=0 and logprobs=1"),
        "frequency_penalty": ((0,), "penalties change the policy that is trained"),
        "presence_penalty": ((0,), "penalties change the policy that is trained"),
        "suffix": (("",), "a text is continued at its end only"),
    },
)  # fmt: skip
"""The parameters of a text completion."""

MAX_TOKENS = 16
MAX_TOP_LOGPROBS = 5
_SAME = KNOWN.parameters - {"logprobs", "max_tokens", "prompt"}


def parse(body: Mapping[str, Any], stored: StoredResponses) -> Asked:  # noqa: ARG001
    """Return the chat completion that a body asks for; RequestError if it is invalid."""
    given = {name: value for name, value in body.items() if value is not None}
    check_names(given, KNOWN)
    chat = {name: given[name] for name in sorted(_SAME) if name in given}
    chat["raw_prompt"] = prompt = _prompt(given.get("prompt"))
    content = prompt if isinstance(prompt, str) else json_text(prompt)
    chat["messages"] = [{"role": "user", "content": content}]
    chat["max_completion_tokens"] = given.get("max_tokens", MAX_TOKENS)
    top = given.get("logprobs")
    if top is not None:
        if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MAX_TOP_LOGPROBS:
            raise bad_parameter("logprobs", f"a whole number from 0 to {MAX_TOP_LOGPROBS}", top)
        chat |= {"logprobs": True, "top_logprobs": top}
    return Asked(body=given, chat=chat)


def _prompt(prompt: Any) -> str | list[int]:
    only = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
    prompt = only if isinstance(only, str | list) else prompt
    ids = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not prompt or not (ids or isinstance(prompt, str)):
        expected = "one text, or one list of token ids; send a request for each prompt"
        raise bad_parameter("prompt", expected, prompt)
    found: str | list[int] = prompt
    return found


def render(asked: Asked, completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text completion of a chat completion."""
    _check_raw(asked, completion)
    texts = [choice["message"].get("content") or "" for choice in completion["choices"]]
    return _shown(asked, completion, texts)


async def events(asked: Asked, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a streamed text completion; an error of the stream is its last event."""
    received = Received()
    try:
        async for chunk in chunks:
            if not received.chunks and not chunk.get("error"):
                _check_raw(asked, chunk)
            received.add(chunk)
            deltas = [choice.get("delta") or {} for choice in chunk.get("choices") or ()]
            yield data(_shown(asked, chunk, [delta.get("content") or "" for delta in deltas]))
        received.whole()
        yield b"data: [DONE]\n\n"
    except RequestError as error:
        yield data(COMPLETIONS.own(error).body())


def _check_raw(asked: Asked, answer: Mapping[str, Any]) -> None:
    if answer.get("raw_prompt") is not True:
        message = f"{asked.body.get('model')!r} is served without text completions; use chat"
        raise RequestError(501, message)


def _shown(asked: Asked, answer: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
    """Return a completion or a chunk with these texts, and with the tokens that were asked for."""
    hidden = {"prompt_tokens", "raw_prompt"}
    hidden |= set() if asked.body.get("return_token_ids") else {"prompt_token_ids"}
    head = {name: value for name, value in answer.items() if name not in hidden}
    pairs = zip(answer.get("choices") or (), texts, strict=True)
    choices = [_choice(asked, choice, text) for choice, text in pairs]
    identity = str(answer.get("id")).replace("chatcmpl-", "cmpl-")
    return {**head, "id": identity, "object": "text_completion", "choices": choices}


def _choice(asked: Asked, choice: Mapping[str, Any], text: str) -> dict[str, Any]:
    fields = (
        ("token_ids", "stop_reason") if asked.body.get("return_token_ids") else ("stop_reason",)
    )
    entries = (choice.get("logprobs") or {}).get("content") if "logprobs" in asked.body else None
    return {
        "index": choice.get("index", 0),
        "text": text,
        "logprobs": _logprobs(entries) if entries else None,
        "finish_reason": choice.get("finish_reason"),
        **{name: choice[name] for name in fields if name in choice},
    }


def _logprobs(entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = [entry["token"] for entry in entries]
    tops = [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": [0, *accumulate(map(len, tokens))][:-1],
    }


COMPLETIONS = Protocol(
    parse=parse,
    render=render,
    events=events,
    error=RequestError.body,
    names={
        "max_completion_tokens": "max_tokens",
        "messages": "prompt",
        "raw_prompt": "prompt",
        "top_logprobs": "logprobs",
    },
)
