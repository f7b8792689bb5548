"""The events of a stream, and the chunks of a chat completion joined into one completion.

openai's own accumulator takes only the exact form: it raises for a tool call without an index and
for choices that are null, and it drops token ids. Providers send all of these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

_OF_ONE_CHUNK = frozenset({"role", "type"})
"""Texts of a delta that are repeated, not continued."""


@attrs.define
class EventData:
    """Finds the data of server-sent events in the bytes of a stream."""

    _rest: bytes = b""
    _data: list[bytes] = attrs.field(factory=list)

    def feed(self, part: bytes | str) -> list[bytes]:
        """Add the next bytes; return the data of the events that they end."""
        # Not as lines of text, which end at U+2028 too, in the middle of a chunk.
        *lines, self._rest = (self._rest + _encoded(part)).split(b"\n")
        return self._read(lines)

    def end(self) -> list[bytes]:
        """Return the data of the last event, if nothing ends it."""
        rest, self._rest = self._rest, b""
        return self._read([rest, b""])

    def _read(self, lines: Iterable[bytes]) -> list[bytes]:
        ended = []
        for line in map(bytes.strip, lines):
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").strip())
            elif not line and self._data:
                ended.append(b"\n".join(self._data))
                self._data.clear()
        return ended


def _encoded(part: bytes | str) -> bytes:
    return part.encode() if isinstance(part, str) else bytes(part)


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
    """Return the objects of a list; an empty list for other values."""
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
