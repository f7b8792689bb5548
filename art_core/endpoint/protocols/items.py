"""The input items of a response, as the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from art_core.base.images import PART
from art_core.endpoint.errors import bad_parameter, shown, unsupported
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.thoughts import FIELD

_ROLES = ("assistant", "developer", "system", "user")
_TEXTS = {
    "input_text": "text", "output_text": "text", "reasoning_text": "text", "refusal": "refusal",
    "summary_text": "text", "text": "text",
}  # fmt: skip
"""Kinds of parts that are text, and the field that has it."""
_IMAGE = "input_image"
ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def conversation(value: Any, stored: StoredResponses) -> list[dict[str, Any]]:
    """Return the chat messages of an input: a text, or a list of items, some of which may refer to
    those of stored responses. The items of one answer (thoughts, text and calls) are one message.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise bad_parameter("input", "a text or a list of items", value)
    messages = _Messages(stored)
    for place, item in enumerate(value):
        messages.add(f"input[{place}]", item)
    return messages.messages


@attrs.define
class _Messages:
    _stored: StoredResponses
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    _answer: dict[str, Any] | None = None
    """The assistant's message that may get more items."""

    def add(self, where: str, item: Any) -> None:
        if not isinstance(item, Mapping):
            raise bad_parameter(where, "an object", item)
        kind = item.get("type") or "message"
        adders: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
            "message": self._message,
            "function_call": self._call,
            "function_call_output": self._output,
            "item_reference": self._reference,
            "reasoning": self._reasoning,
        }
        if not isinstance(kind, str) or kind not in adders:
            known = ", ".join(ITEMS)
            raise unsupported(f"{where}.type", f"items here are {known}; got {shown(kind)}")
        adders[kind](where, item)

    def _message(self, where: str, item: Mapping[str, Any]) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise bad_parameter(f"{where}.role", f"one of {', '.join(_ROLES)}", role)
        at, content = f"{where}.content", item.get("content")
        if role == "assistant":
            self._open(after=("content", "tool_calls"))["content"] = text_of(at, content)
        else:
            self._append({"role": role, "content": content_of(at, content)})

    def _reasoning(self, where: str, item: Mapping[str, Any]) -> None:
        texts = [
            text_of(f"{where}.{name}", item[name])
            for name in ("content", "summary")
            if item.get(name)
        ]
        if not texts and item.get("encrypted_content"):
            reason = "thoughts of another service cannot be read; send the text in content"
            raise unsupported(f"{where}.encrypted_content", reason)
        answer = self._open(after=("content", "tool_calls"))
        answer[FIELD] = answer.get(FIELD, "") + "".join(texts[:1])

    def _call(self, where: str, item: Mapping[str, Any]) -> None:
        function = {name: item.get(name) for name in ("name", "arguments")}
        for name, value in (*function.items(), ("call_id", item.get("call_id"))):
            if not isinstance(value, str):
                raise bad_parameter(f"{where}.{name}", "a text", value)
        call = {"id": item["call_id"], "type": "function", "function": function}
        self._open(after=()).setdefault("tool_calls", []).append(call)

    def _output(self, where: str, item: Mapping[str, Any]) -> None:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise bad_parameter(f"{where}.call_id", "the id of a call", call_id)
        content = content_of(f"{where}.output", item.get("output"))
        self._append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _reference(self, where: str, item: Mapping[str, Any]) -> None:
        self.add(where, self._stored.item(f"{where}.id", item.get("id")))

    def _append(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._answer = None

    def _open(self, after: tuple[str, ...]) -> dict[str, Any]:
        """Return the answer that an item belongs to: another one if the last has fields that come
        after the item.
        """
        if self._answer is None or any(self._answer.get(name) for name in after):
            answer: dict[str, Any] = {"role": "assistant", "content": None}
            self._append(answer)
            self._answer = answer
        return self._answer


def content_of(where: str, content: Any) -> str | list[dict[str, Any]]:
    """Return a content as a chat message has it: a text, or parts if one of them is an image."""
    if not isinstance(content, list):
        return text_of(where, content)
    parts = [_chat_part(f"{where}[{place}]", part) for place, part in enumerate(content)]
    has_image = any(part["type"] == PART for part in parts)
    return parts if has_image else "".join(part["text"] for part in parts)


def _chat_part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping) or part.get("type") != _IMAGE:
        return {"type": "text", "text": _text(where, part)}
    url = part.get("image_url")
    if not isinstance(url, str):
        reason = "files are not kept here; send the image as image_url, a data URL"
        raise unsupported(f"{where}.image_url", f"{reason}, got {shown(url, 80)}")
    return {"type": PART, PART: {"url": url}}


def text_of(where: str, content: Any) -> str:
    """Return the text of a content: a text, or a list of parts that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_parameter(where, "a text or a list of parts", content)
    return "".join(_text(f"{where}[{place}]", part) for place, part in enumerate(content))


def _text(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise bad_parameter(where, 'of the form {"type": "input_text", "text": ...}', part)
    if kind not in _TEXTS:
        reason = "the model reads texts, and images in messages and results of tools"
        raise unsupported(f"{where}.type", f"{reason}; got {shown(kind)}")
    text = part.get(_TEXTS[kind])
    if not isinstance(text, str):
        raise bad_parameter(f"{where}.{_TEXTS[kind]}", "a text", text)
    return text
