"""Answers that are recorded while their bytes arrive: a JSON object, or a stream of events.

openai's own accumulator of a stream takes only the exact form: it raises for a tool call without an
index and for choices that are null. Providers send both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import orjson


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


_OF_ONE_CHUNK = frozenset({"role", "type"})
"""Texts of a delta that are repeated, not continued."""


def joined(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the chat completion of a stream's chunks, with token ids."""
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        head = {**chunk, **{k: v for k, v in head.items() if v is not None}}
        head |= {"usage": chunk["usage"]} if chunk.get("usage") else {}
        for place, piece in enumerate(dicts(chunk.get("choices"))):
            index = index_of(piece, place)
            empty = {"index": index, "message": {"role": "assistant", "content": ""}}
            _grow(choices.setdefault(index, empty), piece)
    whole = [_with_calls(choices[index]) for index in sorted(choices)]
    return {**head, "object": "chat.completion", "choices": whole}


def dicts(values: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list; nothing if the value is no list."""
    return (
        [each for each in values if isinstance(each, Mapping)] if isinstance(values, list) else []
    )


def index_of(piece: Mapping[str, Any], place: int) -> int:
    """Return a choice's index, by default its place in the list."""
    index = piece.get("index")
    return index if isinstance(index, int) else place


def as_text(value: Any) -> str:
    """Return a call's name or arguments as text; some providers send arguments as an object."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _grow(choice: dict[str, Any], piece: Mapping[str, Any]) -> None:
    delta = piece.get("delta") or piece.get("message")
    if isinstance(delta, Mapping):
        _grow_message(choice["message"], delta)
    for name, entries in (piece.get("logprobs") or {}).items():
        if entries:
            choice.setdefault("logprobs", {}).setdefault(name, []).extend(entries)
    if piece.get("token_ids") is not None:
        choice.setdefault("token_ids", []).extend(piece["token_ids"])
    choice["finish_reason"] = piece.get("finish_reason") or choice.get("finish_reason")


def _grow_message(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in dicts(value):
                _grow_call(message.setdefault("tool_calls", {}), call)
        elif isinstance(value, list):
            texts = [part["text"] for part in dicts(value) if isinstance(part.get("text"), str)]
            if name == "content":
                message[name] += "".join(texts)
            else:
                message[name] = [*(message.get(name) or ()), *value]
        elif isinstance(value, str) and name not in _OF_ONE_CHUNK:
            message[name] = (message.get(name) or "") + value
        elif value is not None and name != "role":
            message[name] = value


def _grow_call(calls: dict[int, dict[str, Any]], piece: Mapping[str, Any]) -> None:
    function = piece.get("function") or {}
    empty = {"type": "function", "function": {"name": "", "arguments": ""}}
    call = calls.setdefault(_place(calls, piece, function), empty)
    if piece.get("id"):
        call["id"] = piece["id"]
    for name in ("name", "arguments"):
        call["function"][name] += as_text(function.get(name))


def _place(
    calls: Mapping[int, Mapping[str, Any]], piece: Mapping[str, Any], function: Mapping[str, Any]
) -> int:
    """Return the place of the call that a piece belongs to. A piece without an index begins another
    call if it has a name or an id other than the last one's; else it continues the last one.
    """
    if isinstance(piece.get("index"), int):
        return int(piece["index"])
    last = max(calls, default=0)
    if not calls:
        return last
    if piece.get("id"):
        known = [place for place, call in calls.items() if call.get("id") == piece["id"]]
        return known[-1] if known else last + 1
    return last + 1 if function.get("name") else last


def _with_calls(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice["message"].get("tool_calls")
    if calls is not None:
        choice["message"]["tool_calls"] = [calls[place] for place in sorted(calls)]
    return choice
