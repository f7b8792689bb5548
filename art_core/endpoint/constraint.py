"""Forms that an answer can be held to: of its text, and of its tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from art_core.endpoint.errors import RequestError, bad_parameter, shown
from art_core.endpoint.strict_json import MAX_DEPTH, json_text, too_deep, whole_json

Kind = Literal["json", "regex", "grammar"]
KINDS = ("json", "json_object", "regex", "choice", "grammar")
MAX_FORM = 200_000
"""Characters of a schema, a regular expression or a grammar."""
MODES = {"auto": False, "required": True}


@attrs.frozen
class Form:
    """The form of an answer's text: a JSON schema as JSON text, a regular expression, or a grammar
    in Lark's or GBNF's form. `param` is the parameter that asked for it.
    """

    kind: Kind
    text: str
    param: str


@attrs.frozen(kw_only=True)
class Constraint:
    """What an answer may be: text of a form (None: any text), or calls of `functions`, OpenAI's
    tools. With `required` it is calls; without `parallel` it is at most one call.
    """

    form: Form | None = None
    functions: tuple[Mapping[str, Any], ...] = ()
    required: bool = False
    parallel: bool = True

    @property
    def param(self) -> str:
        """The parameter to name in an error."""
        if self.form is not None:
            return self.form.param
        return "tool_choice" if self.required else "parallel_tool_calls"


def constraint_of(
    given: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]
) -> Constraint | None:
    """Return the constraint that a request asks for; None if its answer is free. `tools` are its
    checked tools, none with tool_choice "none". RequestError if a parameter is invalid.
    """
    form = _form(given)
    parallel = given.get("parallel_tool_calls", True)
    if not isinstance(parallel, bool):
        raise bad_parameter("parallel_tool_calls", "true or false", parallel)
    choice = given.get("tool_choice", "auto")
    functions, required = _callable(choice, tools)
    some = functions and (required or not parallel or len(functions) < len(tools))
    if form is None and not some:
        return None
    return Constraint(form=form, functions=functions, required=required, parallel=parallel)


def _callable(
    choice: Any, tools: Sequence[Mapping[str, Any]]
) -> tuple[tuple[Mapping[str, Any], ...], bool]:
    """Return the tools that may be called, and whether one has to be."""
    if choice == "none":
        return (), False
    if isinstance(choice, str) and choice in MODES:
        if MODES[choice] and not tools:
            raise bad_parameter("tool_choice", "used together with tools", choice)
        return tuple(tools), MODES[choice]
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function":
        return (_tool(choice, tools),), True
    allowed = choice.get("allowed_tools") if kind == "allowed_tools" else None
    if isinstance(allowed, Mapping) and allowed.get("mode") in list(MODES):
        named = allowed.get("tools")
        if isinstance(named, list) and named:
            return tuple(_tool(each, tools) for each in named), MODES[allowed["mode"]]
    expected = (
        "'auto', 'none', 'required', a function "
        '{"type": "function", "function": {"name": ...}}, or allowed_tools'
    )
    raise bad_parameter("tool_choice", expected, choice)


def _tool(choice: Any, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    found = next((tool for tool in tools if tool["function"]["name"] == name), None)
    if found is None:
        names = ", ".join(shown(tool["function"]["name"]) for tool in tools[:20])
        raise bad_parameter("tool_choice", f"one of the tools ({names or 'there are none'})", name)
    return found


def _form(given: Mapping[str, Any]) -> Form | None:
    name = "response_format"
    wanted, direct = given.get(name), given.get("structured_outputs")
    if direct is not None:
        if wanted not in (None, {"type": "text"}):
            raise bad_parameter("structured_outputs", f"given without {name}", direct)
        return _checked(_structured(direct))
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Form("json", '{"type": "object"}', name)
    described = wanted.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, Mapping) or "schema" not in described:
        expected = (
            'of the form {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
            '{"type": "json_object"} or {"type": "text"}'
        )
        raise bad_parameter(name, expected, wanted)
    return _checked(_schema(described["schema"], name))


def _structured(direct: Any) -> Form:
    """Return the form in vLLM's parameter."""
    param = "structured_outputs"
    kinds = [kind for kind in KINDS if isinstance(direct, Mapping) and kind in direct]
    if len(kinds) != 1 or len(direct) != 1:
        raise bad_parameter(param, f"an object with one of {', '.join(KINDS)}", direct)
    kind, value = kinds[0], direct[kinds[0]]
    if kind == "json":
        return _schema(whole_json(value) if isinstance(value, str) else value, param)
    if kind == "json_object" and value is True:
        return Form("json", '{"type": "object"}', param)
    texts = isinstance(value, list) and all(isinstance(each, str) and each for each in value)
    if kind == "choice" and texts and value:
        return Form("grammar", "start: " + " | ".join(map(json_text, value)), param)
    if kind in ("regex", "grammar") and isinstance(value, str) and value:
        return Form("regex" if kind == "regex" else "grammar", value, param)
    raise bad_parameter(f"{param}.{kind}", _EXPECTED[kind], value)


_EXPECTED = {
    "json_object": "true",
    "choice": "a list of texts",
    "regex": "a regular expression",
    "grammar": "a grammar in Lark's or GBNF's form",
}


def _schema(schema: Any, param: str) -> Form:
    if not isinstance(schema, Mapping | bool) or too_deep(schema):
        raise bad_parameter(
            param, f"a JSON schema, an object of at most {MAX_DEPTH} levels", schema
        )
    return Form("json", json_text(schema), param)


def _checked(form: Form) -> Form:
    if len(form.text) > MAX_FORM:
        raise RequestError(
            400,
            f"{form.param} has {len(form.text)} characters; at most {MAX_FORM} are compiled",
            form.param,
        )
    return form
