"""Tool calls back from the text in which a model wrote them: Hermes, Qwen, Mistral, Llama 3.

Text that cannot be read as a call stays content: what a model said is never dropped.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

import attrs

from art_core.endpoint.strict_json import json_text, read_json, whole_json, without_surrogates
from art_core.endpoint.tagged import FUNCTION, tagged_call

HERMES, HERMES_END = "<tool_call>", "</tool_call>"
MISTRAL, MISTRAL_END = "[TOOL_CALLS]", "[/TOOL_CALLS]"
PYTHON_TAG = "<|python_tag|>"
MARKERS = (HERMES, FUNCTION, MISTRAL, PYTHON_TAG)
MARKER_TOKENS = (HERMES, HERMES_END, MISTRAL, MISTRAL_END, PYTHON_TAG, "[ARGS]", "[CALL_ID]")
"""Tokens of tool formats; some tokenizers count them as special, and they must survive until the
text is parsed."""

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
_OWN_ID = re.compile(r"[A-Za-z0-9]{9}")
_SPACES = re.compile(r"\s+")
_SEPARATORS = re.compile(r"[\s;,]+")
_MISTRAL_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*([\w-]*)\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _call_id() -> str:
    """Nine letters and digits: Mistral's templates refuse any other id, the rest take this one."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


@attrs.frozen
class ToolCall:
    """A call that the model wrote: a function's name and its arguments, an object as JSON text. The
    id is the model's own where it wrote one, so that a template that shows ids writes the call
    again as it was.
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

Calls = tuple[list[ToolCall], int]
"""Calls, and where in the text they end."""


def calls_at(text: str, marker: str, start: int, functions: Functions) -> Calls | None:
    """Read the calls behind a marker, which begins at a place; None for what is no call.

    Behind an explicit marker any name is a call, so that an agent can answer that there is no such
    tool; `<function=` without `<tool_call>` and Llama's form must name an offered function.
    """
    inside = start + len(marker)
    if marker == HERMES:
        return _hermes(text, inside, functions)
    if marker == MISTRAL:
        return _mistral(text, inside)
    if marker == PYTHON_TAG:
        return _offered(text, inside, functions)
    read = _tagged(text, start, functions)
    if read is None or read[0][0].name not in functions:
        return None
    return read[0], _skip_end(text, HERMES_END, read[1])


def bare_calls(text: str, start: int, functions: Functions) -> list[ToolCall]:
    """Read JSON without a marker, as Llama 3 writes it: calls of offered functions and nothing
    else, up to the end of the text.
    """
    read = _offered(text, start, functions)
    return read[0] if read is not None and read[1] == len(text) else []


def _hermes(text: str, start: int, functions: Functions) -> Calls | None:
    calls: list[ToolCall] = []
    end, place = start, _skip_spaces(text, start)
    while (read := _tagged(text, place, functions) or _json_calls(text, place)) is not None:
        calls += read[0]
        end, place = read[1], _skip_spaces(text, read[1])
    if not calls:
        return None
    if text.startswith(HERMES_END, place):
        return calls, place + len(HERMES_END)
    # Left open: the text ends here, goes on in another line, or the next call begins.
    closed = place == len(text) or text.startswith(HERMES, place) or "\n" in text[end:place]
    return (calls, end) if closed else None


def _tagged(text: str, start: int, functions: Functions) -> Calls | None:
    read = tagged_call(text, start, functions)
    return None if read is None else ([_call(read[0])], read[1])


def _mistral(text: str, start: int) -> Calls | None:
    read = _json_calls(text, _skip_spaces(text, start)) or _named(text, start)
    return None if read is None else (read[0], _skip_end(text, MISTRAL_END, read[1]))


def _named(text: str, start: int) -> Calls | None:
    """Read Mistral's newer form, `name[ARGS]{...}`."""
    name = _MISTRAL_NAME.match(text, start)
    read = read_json(text, name.end()) if name else None
    if name is None or read is None:
        return None
    return [_call({"name": name[1], "arguments": read[0], "id": name[2]})], read[1]


def _offered(text: str, start: int, functions: Functions) -> Calls | None:
    calls: list[ToolCall] = []
    end, place = start, _skip_spaces(text, start)
    while (read := _json_calls(text, place)) is not None:
        calls += read[0]
        end, place = _skip_spaces(text, read[1]), _skip(_SEPARATORS, text, read[1])
    offered = all(call.name in functions for call in calls)
    return (calls, end) if calls and offered else None


def _json_calls(text: str, place: int) -> Calls | None:
    """Read a call as a JSON object, or a list of them."""
    read = read_json(text, place) if text[place : place + 1] in ("{", "[") else None
    if read is None:
        return None
    values = read[0] if isinstance(read[0], list) else [read[0]]
    plain = [_plain(value) for value in values]
    calls = [_call(call) for call in plain if call is not None]
    return (calls, read[1]) if calls and len(calls) == len(plain) else None


def _skip(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return place if found is None else found.end()


def _skip_spaces(text: str, place: int) -> int:
    return _skip(_SPACES, text, place)


def _skip_end(text: str, ending: str, place: int) -> int:
    """Return the place behind spaces and an ending; without the ending, the place itself."""
    behind = _skip_spaces(text, place)
    return behind + len(ending) if text.startswith(ending, behind) else place


def _plain(value: Any) -> dict[str, Any] | None:
    """Return a call's name, arguments and id from a JSON value in one of the forms in use."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = {"id": value.get("id"), **value["function"]}
    name, arguments = value.get("name"), _arguments(value)
    if not isinstance(name, str) or not name or arguments is None:
        return None
    return {"name": name, "arguments": arguments, "id": value.get("id")}


def _arguments(call: Mapping[str, Any]) -> dict[str, Any] | None:
    given = call.get("arguments")
    if given is None:
        given = call.get("parameters")
    if isinstance(given, str):
        given = whole_json(given or "{}")
        if given is None:
            return None
    given = {} if given is None else given
    return given if isinstance(given, dict) else None


def _call(plain: Mapping[str, Any]) -> ToolCall:
    name, arguments = without_surrogates(plain["name"]), json_text(plain["arguments"])
    own = plain.get("id")
    if isinstance(own, str) and _OWN_ID.fullmatch(own):
        return ToolCall(name, arguments, own)
    return ToolCall(name, arguments)
