"""Calls between tags, `<function=name><parameter=key>value</parameter></function>`, as Qwen 3 Coder
and Qwen 3.5 write them: values have no quotes and no type.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from art_core.endpoint.strict_json import MAX_DEPTH, whole_json

FUNCTION = "<function="
_FUNCTION = re.compile(r"<function=([^>\n]+)>\s*")
_FUNCTION_END = re.compile(r"\s*</function>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?")
_VALUE_END = re.compile(r"\n?</parameter>|\n<parameter=([^>\n]+)>|\n?</function>|\n?</tool_call>")
_LEFT_OPEN = re.compile(r"\s*(?=</tool_call>)")
_WORDS = {"True": True, "False": False, "None": None}


def tagged_call(
    text: str, start: int, functions: Mapping[str, Any]
) -> tuple[dict[str, Any], int] | None:
    """Read the call that begins at a place: its name and arguments, and where it ends.

    A parameter that is left open ends before the next one of the function's schema, or with the
    function; a function that is left open ends before `</tool_call>`.
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
        arguments[key] = _value(value, _types(properties.get(key)))
        place = ended[1]
    closed = _FUNCTION_END.match(text, place) or (arguments and _LEFT_OPEN.match(text, place))
    return ({"name": name, "arguments": arguments}, closed.end()) if closed else None


def _name(written: str) -> str:
    return written.strip().strip("\"'")


def _value_end(text: str, start: int, others: Collection[str]) -> tuple[int, int] | None:
    """Return where a value ends, and where what follows it begins. `others` are the parameters
    that may follow; other tags are part of the value, which may be a page about such calls.
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
    """Return whether a parameter that is open at a place is closed behind it."""
    end = text.find("</parameter>", place)
    return end >= 0 and "<parameter=" not in text[place:end]


def _value(text: str, types: set[str]) -> Any:
    """Read a value that was written without quotes: as text where its schema has or says nothing
    else, else as JSON or one of Python's words. What cannot be read so stays text.
    """
    if not types or ("string" in types and not (text == "null" and "null" in types)):
        return text
    value = whole_json(text)
    return _WORDS.get(text, text) if value is None and text != "null" else value


def _properties(schema: Any) -> Mapping[str, Any]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _types(schema: Any, depth: int = 0) -> set[str]:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return set()
    kind = schema.get("type", "object" if "$ref" in schema else None)
    types = {each for each in (kind if isinstance(kind, list) else [kind]) if isinstance(each, str)}
    for alternatives in (schema.get("anyOf"), schema.get("oneOf")):
        for each in alternatives if isinstance(alternatives, list) else ():
            types |= _types(each, depth + 1)
    return types
