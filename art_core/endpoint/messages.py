"""Messages and tools in the form that chat templates read: plain strings, arguments as objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from art_core.base.images import KINDS, PART, image_bytes
from art_core.endpoint.errors import RequestError, bad_parameter, shown, unsupported
from art_core.endpoint.strict_json import whole_json
from art_core.endpoint.thoughts import FIELD

MAX_NAME = 256
MAX_IMAGES = 100
ROLES = ("system", "developer", "user", "assistant", "tool")


def checked_messages(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the messages in the form of Hugging Face's chat templates; RequestError if invalid."""
    if not isinstance(value, list) or not value:
        raise bad_parameter("messages", "a list of at least one message", value)
    found = tuple(_message(f"messages[{place}]", message) for place, message in enumerate(value))
    if len(images_of(found)) > MAX_IMAGES:
        reason = f"a conversation has at most {MAX_IMAGES} images, got {len(images_of(found))}"
        raise RequestError(400, reason, "messages")
    return found


def images_of(messages: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the data URLs of the images in checked messages, in order."""
    contents = [message["content"] for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return tuple(part["image"] for part in parts if part["type"] == "image")


def checked_tools(tools: Any, choice: Any) -> tuple[dict[str, Any], ...]:
    """Return the tools, none with tool_choice "none"; RequestError if they are invalid."""
    listed = [] if tools is None else tools
    if not isinstance(listed, list):
        raise bad_parameter("tools", "a list", tools)
    for place, tool in enumerate(listed):
        _check_tool(f"tools[{place}]", tool)
    return () if choice == "none" else tuple(listed)


def _check_tool(where: str, tool: Any) -> None:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") != "function":
        expected = 'of the form {"type": "function", "function": {"name": ...}}'
        raise bad_parameter(where, expected, tool)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        expected = f"a text of 1 to {MAX_NAME} characters"
        raise bad_parameter(f"{where}.function.name", expected, name)
    if not isinstance(parameters, Mapping | None):
        raise bad_parameter(f"{where}.function.parameters", "a JSON schema, an object", parameters)


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise bad_parameter(where, "an object", message)
    role = message.get("role")
    if role not in ROLES:
        raise bad_parameter(f"{where}.role", f"one of {', '.join(ROLES)}", role)
    plain = {key: value for key, value in message.items() if value is not None}
    if "function_call" in plain:
        raise unsupported(f"{where}.function_call", "use tool_calls")
    plain["role"] = "system" if role == "developer" else role
    plain["content"] = _content(where, role, _answer_parts(message.get("content")))
    thoughts = plain.pop("reasoning", None)  # the name at OpenRouter and in newer vLLM
    thoughts = thoughts if isinstance(thoughts, str) else _thoughts(message.get("content"))
    if thoughts is not None:
        plain.setdefault(FIELD, thoughts)
    if "tool_calls" in plain:
        plain["tool_calls"] = _tool_calls(where, plain["tool_calls"])
        if not plain["tool_calls"]:
            del plain["tool_calls"]
    return plain


def _answer_parts(content: Any) -> Any:
    """Return a content without its thoughts."""
    if not isinstance(content, list):
        return content
    return [part for part in content if _thought(part) is None]


def _thoughts(content: Any) -> str | None:
    parts = map(_thought, content) if isinstance(content, list) else ()
    texts = [text for text in parts if text is not None]
    return "".join(texts) if texts else None


def _thought(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind, part.get("text")) if kind in ("thinking", "reasoning") else None
    return text if isinstance(text, str) else None


def _content(where: str, role: str, content: Any) -> str | list[dict[str, str]]:
    """Return a content as a text or, with images, as parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise bad_parameter(f"{where}.content", "a string or a list of parts", content)
    parts = [_part(f"{where}.content[{place}]", part) for place, part in enumerate(content)]
    if not any(part["type"] == "image" for part in parts):
        return "".join(part["text"] for part in parts)
    if role == "assistant":
        raise unsupported(f"{where}.content", "an answer of the assistant has no images")
    return parts


def _part(where: str, part: Any) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == PART:
        return {"type": "image", "image": _image(f"{where}.{PART}", part.get(PART))}
    text = part.get(kind) if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        expected = (
            'a text part {"type": "text", "text": ...} or an image part of the type "image_url"'
        )
        raise bad_parameter(where, expected, part)
    return {"type": "text", "text": text}


def _image(where: str, given: Any) -> str:
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str):
        raise bad_parameter(where, 'of the form {"url": "data:image/png;base64,..."}', given)
    if not url.startswith("data:"):
        reason = "images are not fetched from other servers; send the image itself as a data URL"
        raise unsupported(f"{where}.url", f"{reason}, got {shown(url, 80)}")
    if image_bytes(url) is None:
        expected = f"base64 data of one of {', '.join(KINDS)} (data:image/png;base64,...)"
        raise RequestError(400, f"{where}.url must be {expected}, got {shown(url, 80)}", where)
    return url


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise bad_parameter(f"{where}.tool_calls", "a list", calls)
    return [_tool_call(f"{where}.tool_calls[{place}]", call) for place, call in enumerate(calls)]


def _tool_call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise bad_parameter(
            where, 'of the form {"id": ..., "type": "function", "function": {"name": ...}}', call
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    # Some templates render the whole object; models are trained with this order.
    ordered = {"name": function["name"], **function, "arguments": arguments}
    return {**call, "function": ordered}


def _parsed(arguments: str) -> Any:
    """Return arguments as an object, which templates render as JSON. A string that is not a JSON
    object stays as the model wrote it.
    """
    value = whole_json(arguments or "{}")
    return value if isinstance(value, dict) else arguments
