"""The messages of Anthropic's form, whose content is blocks, as those of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_core.base.images import PART
from art_core.endpoint.errors import bad_parameter, shown, unsupported
from art_core.endpoint.strict_json import MAX_DEPTH, json_text, too_deep
from art_core.endpoint.thoughts import FIELD

BLOCKS = ("image", "text", "thinking", "tool_result", "tool_use")


def conversation(messages: Any) -> list[dict[str, Any]]:
    """Return the chat messages of a conversation. Results of tools are messages of their own."""
    if not isinstance(messages, list) or not messages:
        raise bad_parameter("messages", "a list of at least one message", messages)
    found: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("assistant", "system", "user"):
            raise bad_parameter(f"{where}.role", "one of assistant, system, user", role)
        blocks = _blocks(f"{where}.content", message.get("content"))
        found += [_answer(where, blocks)] if role == "assistant" else _given(where, role, blocks)
    if found and found[-1]["role"] == "assistant":
        reason = "an answer cannot continue a text that is given; end with a message of the user"
        raise unsupported(f"messages[{len(messages) - 1}].role", reason)
    return found


def checked_list(name: str, value: Any) -> list[Any]:
    """Return a list; RequestError for another value."""
    if not isinstance(value, list):
        raise bad_parameter(name, "a list", value)
    return value


def text_of(where: str, content: Any) -> str:
    """Return the text of a content: a text, or a list of text blocks."""
    blocks = _blocks(where, content)
    return "".join(_text(f"{where}[{place}]", block) for place, block in enumerate(blocks))


def content_of(where: str, content: Any) -> str | list[dict[str, Any]]:
    """Return a content as a chat message has it: a text, or parts if one of them is an image."""
    blocks = enumerate(_blocks(where, content))
    return _joined([_chat_part(f"{where}[{place}]", block) for place, block in blocks])


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    has_image = any(part["type"] == PART for part in parts)
    return parts if has_image else "".join(part["text"] for part in parts)


def _chat_part(where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    if block["type"] != "image":
        return {"type": "text", "text": _text(where, block)}
    source = block.get("source")
    given = source if isinstance(source, Mapping) else {}
    if given.get("type") == "url" and isinstance(given.get("url"), str):
        return {"type": PART, PART: {"url": given["url"]}}
    kind, data = given.get("media_type"), given.get("data")
    if given.get("type") != "base64" or not isinstance(kind, str) or not isinstance(data, str):
        expected = '{"type": "base64", "media_type": "image/png", "data": ...}'
        raise bad_parameter(f"{where}.source", f"of the form {expected}", source)
    return {"type": PART, PART: {"url": f"data:{kind};base64,{data}"}}


def _blocks(where: str, content: Any) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise bad_parameter(where, "a text or a list of content blocks", content)
    for place, block in enumerate(content):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            expected = 'a content block {"type": ..., ...}'
            raise bad_parameter(f"{where}[{place}]", expected, block)
    return content


def _answer(where: str, blocks: list[Mapping[str, Any]]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        at = f"{where}.content[{place}]"
        if block["type"] == "tool_use":
            calls.append(_call(at, block))
        elif block["type"] == "thinking":
            thoughts.append(_text(at, block, "thinking"))
        else:
            texts.append(_text(at, block))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    message |= {FIELD: "".join(thoughts)} if thoughts else {}
    return message | ({"tool_calls": calls} if calls else {})


def _call(where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("id", "name"):
        if not isinstance(block.get(name), str):
            raise bad_parameter(f"{where}.{name}", "a text", block.get(name))
    arguments = block.get("input", {})
    if not isinstance(arguments, Mapping) or too_deep(arguments):
        expected = f"an object of at most {MAX_DEPTH} levels"
        raise bad_parameter(f"{where}.input", expected, arguments)
    function = {"name": block["name"], "arguments": json_text(arguments)}
    return {"id": block["id"], "type": "function", "function": function}


def _given(where: str, role: str, blocks: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for place, block in enumerate(blocks):
        at = f"{where}.content[{place}]"
        if block["type"] == "tool_result":
            messages.append(_result(at, block))
        elif messages and messages[-1]["role"] == role:
            messages[-1]["content"].append(_chat_part(at, block))
        else:
            messages.append({"role": role, "content": [_chat_part(at, block)]})
    for message in messages:
        if message["role"] == role:
            message["content"] = _joined(message["content"])
    return messages


def _result(where: str, block: Mapping[str, Any]) -> dict[str, Any]:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise bad_parameter(f"{where}.tool_use_id", "the id of a call", call_id)
    content = content_of(f"{where}.content", block.get("content") or "")
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _text(where: str, block: Mapping[str, Any], kind: str = "text") -> str:
    if block["type"] != kind:
        known = ", ".join(BLOCKS)
        reason = f"the blocks of a message are {known}"
        raise unsupported(f"{where}.type", f"{reason}; got {shown(block['type'])}")
    text = block.get(kind)
    if not isinstance(text, str):
        raise bad_parameter(f"{where}.{kind}", "a text", text)
    return text
