"""The chunks of a stream, put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def joined(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the chat completion that a stream's chunks are together, token ids included."""
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        head = {**chunk, **head}
        for piece in chunk.get("choices") or ():
            empty = {"index": piece["index"], "message": {"role": "assistant", "content": ""}}
            _grow(choices.setdefault(piece["index"], empty), piece)
    return {**head, "object": "chat.completion", "choices": [choices[i] for i in sorted(choices)]}


def _grow(choice: dict[str, Any], piece: Mapping[str, Any]) -> None:
    message, delta = choice["message"], piece.get("delta") or {}
    for name, value in delta.items():
        if isinstance(value, str) and name != "role":
            message[name] = message.get(name, "") + value
    for call in delta.get("tool_calls") or ():
        _grow_call(message.setdefault("tool_calls", []), call)
    for entry in (piece.get("logprobs") or {}).get("content") or ():
        choice.setdefault("logprobs", {"content": []})["content"].append(entry)
    if piece.get("token_ids") is not None:
        choice.setdefault("token_ids", []).extend(piece["token_ids"])
    choice["finish_reason"] = piece.get("finish_reason")


def _grow_call(calls: list[dict[str, Any]], piece: Mapping[str, Any]) -> None:
    while len(calls) <= piece["index"]:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[piece["index"]], piece.get("function") or {}
    if piece.get("id"):
        call["id"] = piece["id"]
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""
