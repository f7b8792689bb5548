"""Tool calls back from the text in which a model wrote them: Hermes and Qwen, Mistral, Llama 3.

Text that does not parse stays content: what a model said is never dropped.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Collection
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


def parse(text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """Split a model's text into content and tool calls.

    `names` are the functions offered: bare JSON (Llama 3) is a call only when it names one of them.
    If any part that looks like a call cannot be read, the whole text stays content.
    """
    if HERMES in text:
        return _hermes(text)
    if MISTRAL in text:
        return _mistral(text)
    return _llama(text, names)


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


def _hermes(text: str) -> tuple[str, list[ToolCall]]:
    calls = [_call(_json(match.group(1))) for match in _HERMES_BLOCK.finditer(text)]
    read = [call for call in calls if call is not None]
    if len(read) != len(calls):
        return text, []
    return _HERMES_BLOCK.sub("", text).rstrip(), read


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


def _llama(text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    content, tag, rest = text.partition(PYTHON_TAG)
    bare = rest if tag else text
    calls = [_call(_json(part)) for part in re.split(r"(?<=\})\s*;\s*(?=\{)", bare.strip())]
    read = [call for call in calls if call is not None and call.name in names]
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
