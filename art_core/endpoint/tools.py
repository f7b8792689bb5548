"""Parsing of tool calls in a model's text: the forms of Hermes, Qwen, Mistral and Llama 3.

Text that cannot be parsed as a call stays content: no text of a model is dropped.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from art_core.endpoint.strict_json import (
    MAX_DEPTH,
    json_text,
    read_json,
    whole_json,
    without_surrogates,
)

HERMES, HERMES_END = "<tool_call>", "</tool_call>"
MISTRAL, MISTRAL_END = "[TOOL_CALLS]", "[/TOOL_CALLS]"
PYTHON_TAG = "<|python_tag|>"
FUNCTION = "<function="
_FUNCTION = re.compile(r"<function=([^>\n]+)>\s*")
_FUNCTION_END = re.compile(r"\s*</function>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?")
_VALUE_END = re.compile(r"\n?</parameter>|\n<parameter=([^>\n]+)>|\n?</function>|\n?</tool_call>")
_LEFT_OPEN = re.compile(r"\s*(?=</tool_call>)")
_WORDS = {"True": True, "False": False, "None": None}
MARKERS = (HERMES, FUNCTION, MISTRAL, PYTHON_TAG)
MARKER_TOKENS = (HERMES, HERMES_END, MISTRAL, MISTRAL_END, PYTHON_TAG, "[ARGS]", "[CALL_ID]")
"""Tokens of tool formats. Some tokenizers count them as special, and they must stay until the text
is parsed."""

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
_OWN_ID = re.compile(r"[A-Za-z0-9]{9}")
_SPACES = re.compile(r"\s+")
_SEPARATORS = re.compile(r"[\s;,]+")
_MISTRAL_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*([\w-]*)\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _call_id() -> str:
    """Return nine letters and digits, the only ids that Mistral's templates accept."""
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))


@attrs.frozen
class ToolCall:
    """A call that the model wrote: a function's name and its arguments, an object as JSON text.

    The id is the model's own if it wrote one, so that a template that shows ids renders the call as
    the model wrote it.
    """

    name: str
    arguments: str
    id: str = attrs.field(factory=_call_id)

    def as_dict(self) -> dict[str, Any]:
        """Return the call in OpenAI's form."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


Functions = Mapping[str, Any]
"""The offered functions: name -> JSON schema of the parameters."""

Calls = tuple[list[ToolCall], int]
"""Calls, and the place in the text where they end."""


def calls_at(text: str, marker: str, start: int, functions: Functions) -> Calls | None:
    """Parse the calls after a marker that begins at `start`; None if there is no call.

    After an explicit marker any name is a call, so that an agent can answer that there is no such
    tool. `<function=` without `<tool_call>` and Llama's form must name an offered function.
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
    """Parse calls without a marker, as Llama 3 writes them: JSON objects that name offered
    functions, and nothing else, up to the end of the text.
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
    # No closing tag: the text ends here, continues on another line, or the next call begins.
    closed = place == len(text) or text.startswith(HERMES, place) or "\n" in text[end:place]
    return (calls, end) if closed else None


def _tagged(text: str, start: int, functions: Functions) -> Calls | None:
    read = tagged_call(text, start, functions)
    return None if read is None else ([_call(read[0])], read[1])


def _mistral(text: str, start: int) -> Calls | None:
    read = _json_calls(text, _skip_spaces(text, start)) or _named(text, start)
    return None if read is None else (read[0], _skip_end(text, MISTRAL_END, read[1]))


def _named(text: str, start: int) -> Calls | None:
    """Parse Mistral's newer form, `name[ARGS]{...}`."""
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
    """Parse a call as a JSON object, or a list of such objects."""
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
    """Return the place after spaces and an ending; `place` itself if the ending is missing."""
    behind = _skip_spaces(text, place)
    return behind + len(ending) if text.startswith(ending, behind) else place


def _plain(value: Any) -> dict[str, Any] | None:
    """Return the name, arguments and id of a call, from JSON in one of the usual forms."""
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


def tagged_call(
    text: str, start: int, functions: Mapping[str, Any]
) -> tuple[dict[str, Any], int] | None:
    """Parse `<function=name><parameter=key>value</parameter></function>`, as Qwen 3 Coder and
    Qwen 3.5 write it: values have no quotes and no type. Return name and arguments, and the end.

    A parameter without a closing tag ends before the next one of the function's schema, or with the
    function. A function without a closing tag ends before `</tool_call>`.
    """
    opened = _FUNCTION.match(text, start)
    if opened is None:
        return None
    name, place = _name(opened[1]), opened.end()
    properties = _properties(functions.get(name))
    arguments: dict[str, Any] = {}
    while (parameter := _PARAMETER.match(text, place)) is not None:
        key = _name(parameter[1])
        ended = _value_end(text, parameter.end(), properties.keys() - {*arguments, key})
        if ended is None:
            return None
        value = text[parameter.end() : max(parameter.end(), ended[0])]
        arguments[key] = _value(value, schema_types(properties.get(key)))
        place = ended[1]
    closed = _FUNCTION_END.match(text, place) or (arguments and _LEFT_OPEN.match(text, place))
    return ({"name": name, "arguments": arguments}, closed.end()) if closed else None


def _name(written: str) -> str:
    return written.strip().strip("\"'")


def _value_end(text: str, start: int, others: Collection[str]) -> tuple[int, int] | None:
    """Return the end of a value, and the place after its closing tag. `others` are the parameters
    that may follow. Other tags are part of the value, which may be a text about such calls.
    """
    for found in _VALUE_END.finditer(text, start):
        if found[0].endswith("</parameter>"):
            return found.start(), found.end()
        if found[1] is not None:
            if _name(found[1]) in others:
                return found.start(), found.start()
        elif not _is_closed_later(text, found.end()):
            return found.start(), found.start()
    return None


def _is_closed_later(text: str, place: int) -> bool:
    """Return whether a parameter that is open at `place` is closed later."""
    end = text.find("</parameter>", place)
    return end >= 0 and "<parameter=" not in text[place:end]


def _value(text: str, types: set[str]) -> Any:
    """Parse a value without quotes. It is text if its schema allows a string or has no type, else
    JSON or a word of Python. A value that cannot be parsed stays text.
    """
    if not types or ("string" in types and not (text == "null" and "null" in types)):
        return text
    value = whole_json(text)
    return _WORDS.get(text, text) if value is None and text != "null" else value


def _properties(schema: Any) -> Mapping[str, Any]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def schema_types(schema: Any, depth: int = 0) -> set[str]:
    """Return the JSON types that a schema names; none if it allows any."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return set()
    kind = schema.get("type", "object" if "$ref" in schema else None)
    types = {each for each in (kind if isinstance(kind, list) else [kind]) if isinstance(each, str)}
    for alternatives in (schema.get("anyOf"), schema.get("oneOf")):
        for each in alternatives if isinstance(alternatives, list) else ():
            types |= schema_types(each, depth + 1)
    return types
