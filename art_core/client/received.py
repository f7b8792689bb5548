"""Answers that are recorded while their bytes arrive: a JSON object, or a stream of events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import orjson

from art_core.endpoint.stream import as_text, dicts, index_of, joined


@attrs.define(eq=False)
class ReceivedAnswer:
    """The part of an answer that has arrived. `ended` means that nothing is missing."""

    request: Mapping[str, Any]
    ended: bool = False
    _bytes: bytearray = attrs.field(factory=bytearray)
    _data: list[bytes] = attrs.field(factory=list)
    _chunks: list[Mapping[str, Any]] = attrs.field(factory=list)
    _seen: set[int] = attrs.field(factory=set)
    _finished: set[int] = attrs.field(factory=set)
    _failed: bool = False
    _is_json: bool | None = None

    def feed(self, part: bytes) -> None:
        """Add the next bytes."""
        self._bytes += part
        if self._is_json is None and self._bytes.strip():
            self._is_json = self._bytes.lstrip().startswith((b"{", b"["))
        if self._is_json is False and b"\n" in part:
            # Not as lines of text, which end at U+2028 too, in the middle of a chunk.
            *lines, rest = self._bytes.split(b"\n")
            self._bytes = rest
            self._read(lines)

    def end(self) -> None:
        """Read the rest: all bytes have arrived, and the last line may have no end."""
        if self._is_json is False:
            self._read([self._bytes, b""])
        self.ended = self.ended or bool(self._is_json) or self._all_finished()

    @property
    def is_whole(self) -> bool:
        """True if the answer has ended or each choice is finished."""
        requested = self.request.get("n")
        choices = requested if isinstance(requested, int) else 1
        return self.ended or len(self._finished) >= max(1, choices)

    def completion(self) -> dict[str, Any]:
        """Return the chat completion; one of an error has no choices."""
        if self._is_json:
            value = _loaded(bytes(self._bytes))
            whole = dict(value) if isinstance(value, Mapping) else {}
        else:
            whole = joined(self._chunks)
        given = enumerate(dicts(whole.get("choices")))
        choices = [_choice(choice, place) for place, choice in given]
        return {**whole, "choices": [choice for choice in choices if choice is not None]}

    def _all_finished(self) -> bool:
        return bool(self._seen) and self._seen <= self._finished

    def _read(self, lines: Iterable[bytearray | bytes]) -> None:
        for line in lines:
            data = bytes(line).strip()
            if data.startswith(b"data:"):
                self._data.append(data.removeprefix(b"data:").strip())
            elif not data and self._data:
                self._take(b"\n".join(self._data))
                self._data.clear()

    def _take(self, data: bytes) -> None:
        if data.startswith(b"[DONE]"):
            self.ended = not self._failed or self._all_finished()
            return
        try:
            chunk = _loaded(data)
        except ValueError:
            return  # the agent's client cannot read it either
        if not isinstance(chunk, Mapping):
            return
        self._chunks.append(chunk)
        self._failed = self._failed or bool(chunk.get("error"))
        pieces = [*enumerate(dicts(chunk.get("choices")))]
        self._seen |= {index_of(piece, place) for place, piece in pieces}
        self._finished |= {index_of(p, place) for place, p in pieces if p.get("finish_reason")}


def _loaded(data: bytes) -> Any:
    """Read JSON, also with the NaN of log-probs that Python writes."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def _choice(choice: Mapping[str, Any], place: int) -> dict[str, Any] | None:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        return None
    if "tool_calls" in message:
        calls = [_call(call) for call in dicts(message["tool_calls"])]
        message = {**message, "tool_calls": calls or None}
    reason = choice.get("finish_reason") or "stop"
    return {**choice, "index": index_of(choice, place), "finish_reason": reason, "message": message}


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    return {**call, "function": {**function, "arguments": as_text(function.get("arguments"))}}
