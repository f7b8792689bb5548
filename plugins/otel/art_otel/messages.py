"""OpenAI's chat messages as messages of parts, by the semantic conventions for generative AI:
what `art_core.reports.otel` reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]
Part = dict[str, Any]


def as_json(value: Any) -> str:
    """Return a structured attribute as text, which all collectors take."""
    return json.dumps(value, ensure_ascii=False, default=str)


def messages_of_parts(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return chat messages as messages of parts."""
    return [{"role": message.get("role"), "parts": list(_parts(message))} for message in messages]


def definitions_of(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tools in OpenAI's form as flat definitions."""
    return [{"type": tool.get("type", "function"), **_definition(tool)} for tool in tools]


def _definition(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool


def _parts(message: Message) -> Iterator[Part]:
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if thoughts:
        yield {"type": "reasoning", "content": str(thoughts)}
    content = message.get("content")
    if message.get("role") == "tool":
        identifier = message.get("tool_call_id")
        yield {"type": "tool_call_response", "id": identifier, "response": content}
    elif isinstance(content, str):
        yield {"type": "text", "content": content}
    else:
        yield from map(_content_part, content or ())
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        yield {
            "type": "tool_call",
            "id": call.get("id"),
            "name": function.get("name"),
            "arguments": value_of(function.get("arguments")),
        }


def _content_part(item: Mapping[str, Any]) -> Part:
    if item.get("type") == "text":
        return {"type": "text", "content": item.get("text")}
    if item.get("type") == "image_url":
        return _image_part(str((item.get("image_url") or {}).get("url")))
    return dict(item)


def _image_part(url: str) -> Part:
    head, comma, data = url.partition(";base64,")
    if comma and head.startswith("data:"):
        kind = head.removeprefix("data:")
        return {"type": "blob", "modality": "image", "mime_type": kind, "content": data}
    return {"type": "uri", "modality": "image", "uri": url}


def value_of(text: Any) -> Any:
    """Return the value of a JSON text if `json.dumps` writes it as it is there, else the text: the
    reader then has the same letters again.
    """
    if not isinstance(text, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if not isinstance(value, str) and json.dumps(value) == text else text
