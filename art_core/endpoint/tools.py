"""Tool calls back from the text in which a model wrote them: Hermes, Qwen, Mistral, Llama 3.

Text that does not parse stays content: what a model said is never dropped.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection, Mapping
from typing import Any

import attrs

HERMES = "<tool_call>"
MISTRAL = "[TOOL_CALLS]"
PYTHON_TAG = "<|python_tag|>"
MARKERS = (HERMES, MISTRAL, PYTHON_TAG)
MARKER_TOKENS = (*MARKERS, "</tool_call>", "[ARGS]", "[CALL_ID]", "[/TOOL_CALLS]")
"""Tokens of tool formats; some tokenizers count them as special, and they must survive until the
text is parsed."""

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
_OWN_ID = re.compile(r"[A-Za-z0-9]{9}")
_HERMES_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_TAGGED_CALL = re.compile(r"<function=([^>\n]+)>(.*)</function>", re.DOTALL)
_TAGGED_VALUE = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_WORDS = {"True": True, "False": False, "None": None}
_MISTRAL_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?\[ARGS\]\s*")


def _call_id() -> str:
    """Nine letters and digits: Mistral's templates refuse any other id, the rest take this one."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


@attrs.frozen
class ToolCall:
    """A call that the model wrote: a function's name and its arguments as JSON text. The id is the
    model's own where it wrote one, so that a template that shows ids writes the call again as it
    was.
    """

    name: str
    arguments: str
    id: str = attrs.field(factory=_call_id)

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's form."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


Functions = Mapping[str, Any]
"""The functions offered: the JSON schema of each one's parameters, by its name."""


def parse(text: str, functions: Functions) -> tuple[str, list[ToolCall]]:
    """Split a model's text into content and tool calls.

    Bare JSON (Llama 3) is a call only when it names an offered function; what stands between tags
    (Qwen 3.5) is read as the function's schema says. If any part that looks like a call cannot be
    read, the whole text stays content.
    """
    if HERMES in text:
        return _hermes(text, functions)
    if MISTRAL in text:
        return _mistral(text)
    return _llama(text, functions)


def may_begin_call(text: str) -> int:
    """Return how much of a growing text is surely content, whatever follows: a stream sends no more
    than that.
    """
    if text.lstrip()[:1] in ("", "{"):
        return 0
    found = [place for place in map(text.find, MARKERS) if place >= 0]
    sure = min(found) if found else len(text) - held_back(text, MARKERS)
    return len(text[:sure].rstrip())


def held_back(text: str, endings: Collection[str]) -> int:
    """Return the length of the longest end of `text` that could be the beginning of one of the
    strings.
    """
    longest = max(map(len, endings), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(ending.startswith(text[-size:]) for ending in endings):
            return size
    return 0


def _hermes(text: str, functions: Functions) -> tuple[str, list[ToolCall]]:
    blocks = [match.group(1) for match in _HERMES_BLOCK.finditer(text)]
    calls = [_call(_tagged(block, functions) or _json(block)) for block in blocks]
    read = [call for call in calls if call is not None]
    if len(read) != len(calls):
        return text, []
    return _HERMES_BLOCK.sub("", text).rstrip(), read


def _tagged(block: str, functions: Functions) -> dict[str, Any] | None:
    """Read Qwen 3.5's form, `<function=name><parameter=key>value</parameter></function>`."""
    call = _TAGGED_CALL.fullmatch(block)
    if call is None or _TAGGED_VALUE.sub("", call.group(2)).strip():
        return None
    schema = functions.get(call.group(1))
    properties = (schema.get("properties") if isinstance(schema, Mapping) else None) or {}
    values = _TAGGED_VALUE.findall(call.group(2))
    arguments = {key: _value(text, _types(properties.get(key))) for key, text in values}
    return {"name": call.group(1), "arguments": arguments}


def _value(text: str, types: set[str]) -> Any:
    """Read a value that was written without quotes: as text where its schema has or says nothing
    else, else as JSON or one of Python's words. What cannot be read so stays text.
    """
    if not types or ("string" in types and not (text == "null" and "null" in types)):
        return text
    value = _json(text)
    return _WORDS.get(text, text) if value is None and text != "null" else value


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    kind = schema.get("type", "object" if "$ref" in schema else [])
    alternatives = [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]
    return {*([kind] if isinstance(kind, str) else kind)}.union(*map(_types, alternatives))


def _mistral(text: str) -> tuple[str, list[ToolCall]]:
    content, _, rest = text.partition(MISTRAL)
    listed = _json(rest.replace("[/TOOL_CALLS]", ""))
    values = listed if isinstance(listed, list) else _named_arguments(rest)
    calls = [_call(value) for value in values]
    read = [call for call in calls if call is not None]
    if not read or len(read) != len(calls):
        return text, []
    return content.rstrip(), read


def _named_arguments(text: str) -> list[Any]:
    """Mistral's newer form, `name[ARGS]{...}`, one after another."""
    values: list[Any] = []
    decoder = json.JSONDecoder()
    for part in text.split(MISTRAL):
        match = _MISTRAL_CALL.match(part)
        if match is None:
            return []
        try:
            arguments, _ = decoder.raw_decode(part, match.end())
        except ValueError:
            return []
        values.append({"name": match.group(1), "arguments": arguments})
    return values


def _llama(text: str, functions: Functions) -> tuple[str, list[ToolCall]]:
    content, tag, rest = text.partition(PYTHON_TAG)
    bare = rest if tag else text
    calls = [_call(_json(part)) for part in re.split(r"(?<=\})\s*;\s*(?=\{)", bare.strip())]
    read = [call for call in calls if call is not None and call.name in functions]
    if len(read) != len(calls):
        return text, []
    return (content.rstrip() if tag else ""), read


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        return None
    own = value.get("id")
    if isinstance(own, str) and _OWN_ID.fullmatch(own):
        return ToolCall(value["name"], arguments, own)
    return ToolCall(value["name"], arguments)
