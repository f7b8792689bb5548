"""The parts that all protocols share: a translated request, a protocol, and a received stream."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import attrs

from art_core.endpoint.errors import RequestError
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.stream import joined
from art_core.endpoint.strict_json import json_bytes
from art_core.endpoint.thoughts import FIELD

EXTENSIONS = frozenset(
    {
        "chat_template_kwargs", "logit_bias", "min_p", "return_token_ids", "seed",
        "structured_outputs",
    }
)  # fmt: skip
"""Parameters of this endpoint that every protocol passes on to the chat completion."""
_OF_THE_SAMPLE = ("policy_version", "sampling", "grammar")


@attrs.frozen(kw_only=True)
class Asked:
    """A request of a protocol: its body, and the body of the chat completion that answers it."""

    body: Mapping[str, Any]
    chat: dict[str, Any]
    keep: Callable[[Mapping[str, Any], Mapping[str, Any]], None] = lambda *_: None
    """Called with the rendered answer and the chat message, once the answer is whole."""

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.chat.get("stream") is True


Chunks = AsyncIterator[Mapping[str, Any]]


@attrs.frozen(kw_only=True)
class Protocol:
    """How one protocol is spoken. `names` are its own names of chat completions' parameters."""

    parse: Callable[[Mapping[str, Any], StoredResponses], Asked]
    render: Callable[[Asked, Mapping[str, Any]], dict[str, Any]]
    events: Callable[[Asked, Chunks], AsyncGenerator[bytes, None]]
    error: Callable[[RequestError], dict[str, Any]]
    names: Mapping[str, str] = attrs.field(factory=dict)

    def own(self, error: RequestError) -> RequestError:
        """Return an error of the chat completion with the protocol's name of the parameter."""
        status, message, param, code = error.args
        head, dot, rest = str(param or "").partition(".")
        if head not in self.names:
            return error
        own = self.names[head]
        if message.startswith(head):
            message = own + message.removeprefix(head)
        return RequestError(status, message, own + dot + rest, code)


@attrs.define
class Received:
    """The chunks of a streamed chat completion that have arrived."""

    chunks: list[Mapping[str, Any]] = attrs.field(factory=list)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk; raises RequestError for an error of the server."""
        if chunk.get("error"):
            raise error_of(chunk)
        self.chunks.append(chunk)

    def whole(self) -> dict[str, Any]:
        """Return the chat completion; RequestError if the stream ended before it was whole."""
        completion = joined(self.chunks)
        choices = completion["choices"]
        if not choices or not all(choice.get("finish_reason") for choice in choices):
            raise RequestError(503, "the stream broke off before the answer was whole")
        return completion


def error_of(body: Any, status: int = 503) -> RequestError:
    """Return the error that a server sent in OpenAI's form, or as another text."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return RequestError(status, str(error))
    param = error.get("param")
    message = str(error.get("message") or error)
    return RequestError(status, message, param if isinstance(param, str) else None,
                        error.get("code"))  # fmt: skip


def grown(chunk: Mapping[str, Any]) -> tuple[str | None, str, dict[str, Any]]:
    """Return the thoughts and the text that a chunk adds, and its first choice."""
    choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
    delta = choice.get("delta") or {}
    content = delta.get("content")
    return thoughts_of(delta), content if isinstance(content, str) else "", choice


def thoughts_of(message: Mapping[str, Any]) -> str | None:
    """Return the thoughts of a chat message, under either of their names."""
    found = message.get(FIELD, message.get("reasoning"))
    return found if isinstance(found, str) else None


def of_the_sample(asked: Asked, completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the endpoint's own fields of an answer: the policy version, a sampling that changes
    log-probs and, if they were asked for, the token ids.
    """
    found = {name: completion[name] for name in _OF_THE_SAMPLE if name in completion}
    if asked.body.get("return_token_ids"):
        choice = completion["choices"][0]
        ids = completion.get("prompt_token_ids"), choice.get("token_ids")
        found |= {"prompt_token_ids": ids[0], "token_ids": ids[1]}
        found |= {name: completion[name] for name in ("prompt_images",) if name in completion}
    return found


def usage_of(completion: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the tokens of the prompt, those of them that were cached, and those of the answer."""
    usage = completion.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return usage.get("prompt_tokens") or 0, cached or 0, usage.get("completion_tokens") or 0


def new_id(prefix: str) -> str:
    """Return a random id."""
    return f"{prefix}_{secrets.token_hex(16)}"


def event(value: Mapping[str, Any]) -> bytes:
    """Return a server-sent event that is named as the type of its data."""
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), json_bytes(value))


def data(value: Any) -> bytes:
    """Return a server-sent event without a name."""
    return b"data: " + json_bytes(value) + b"\n\n"
