"""Tokens are asked for in every chat completion; the client gets those that it asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import attrs
import orjson

Keep = Callable[[Mapping[str, Any]], None]


@attrs.frozen(kw_only=True)
class TokenFields:
    """The fields about tokens that a request asks for itself."""

    logprobs: bool
    token_ids: bool

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> TokenFields:
        """Read a request."""
        return cls(
            logprobs=bool(request.get("logprobs")) or request.get("top_logprobs") is not None,
            token_ids=bool(request.get("return_token_ids")),
        )

    @property
    def all(self) -> bool:
        """True if the client gets all, and needs nobody to remember them."""
        return self.logprobs and self.token_ids

    def asking(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request as it asks for all."""
        more = {} if self.logprobs else {"logprobs": True}
        return {**request, **more, **({} if self.token_ids else {"return_token_ids": True})}

    def cut(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return a completion, or a chunk of one, with the fields that were asked for."""
        kept = dict(completion)
        if not self.token_ids:
            kept.pop("prompt_token_ids", None)
        kept["choices"] = [self._cut_choice(choice) for choice in completion.get("choices") or ()]
        return kept

    def _cut_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        kept = dict(choice)
        if not self.token_ids:
            kept.pop("token_ids", None)
        if not self.logprobs and "logprobs" in kept:
            kept["logprobs"] = None
        return kept

    async def cut_stream(self, lines: AsyncIterator[str], keep: Keep) -> AsyncIterator[bytes]:
        """Yield the events of a stream with the fields that were asked for; `keep` gets the whole
        completion at the end.
        """
        joined = _Joined()
        async for line in lines:
            text = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not text.startswith("{"):
                if text == "[DONE]":
                    keep(joined.completion())
                yield line.encode() + b"\n"
                continue
            chunk = orjson.loads(text)
            joined.add(chunk)
            yield b"data: " + orjson.dumps(self.cut(chunk)) + b"\n"


class _Joined:
    """The chunks of a stream as one completion: what is needed to find its answers again."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        names = ("prompt_token_ids", "policy_version", "sampling")
        self._head |= {name: chunk[name] for name in names if name in chunk}
        for part in chunk.get("choices") or ():
            new = {"content": "", "calls": {}, "token_ids": [], "entries": []}
            choice = self._choices.setdefault(part["index"], new)
            delta = part.get("delta") or {}
            choice["content"] += delta.get("content") or ""
            choice["token_ids"] += part.get("token_ids") or ()
            choice["entries"] += (part.get("logprobs") or {}).get("content") or ()
            for call in delta.get("tool_calls") or ():
                _join_call(choice["calls"], call)

    def completion(self) -> dict[str, Any]:
        choices = [
            {
                "message": {
                    "role": "assistant",
                    "content": choice["content"],
                    "tool_calls": list(choice["calls"].values()),
                },
                "token_ids": choice["token_ids"],
                "logprobs": {"content": choice["entries"]},
            }
            for choice in self._choices.values()
        ]
        return {**self._head, "choices": choices}


def _join_call(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    call = calls.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
    if part.get("id"):
        call["id"] = part["id"]
    for name, text in (part.get("function") or {}).items():
        call["function"][name] = call["function"].get(name, "") + (text or "")
