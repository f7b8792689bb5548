"""Functions as tools: their schemas for the model, and the answers to its calls."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs

from art_core.base.errors import ConfigError
from art_core.data.trajectory import Message

_KINDS: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}


@attrs.frozen(kw_only=True)
class Tool:
    """A tool that a model may call: its schema, and the function that answers a call.

    `Tool.of(function)` describes a Python function. Make one yourself for a tool whose schema comes
    from elsewhere, such as a server: `parameters` is a JSON schema of the arguments, `call` gets
    them as a mapping and may be async, and `problem` returns what is wrong with them, "" for
    nothing.
    """

    name: str
    call: Callable[[Mapping[str, Any]], Any]
    parameters: Mapping[str, Any]
    description: str = ""
    problem: Callable[[Mapping[str, Any]], str] = attrs.field(default=lambda _: "")

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Return a function as a tool; ConfigError for a parameter of an unknown type."""
        hints = {k: v for k, v in get_type_hints(function).items() if k != "return"}
        for name, hint in hints.items():
            if _schema_of(hint) is None:
                raise ConfigError(
                    f"the tool {function.__name__!r} has a parameter {name!r} of the type {hint}",
                    "Take str, int, float, bool, list, dict or Literal[...].",
                )
        known = inspect.signature(function).parameters
        properties = {name: _schema_of(hints.get(name, str)) for name in known}
        required = [name for name, p in known.items() if p.default is p.empty]
        return cls(
            name=function.__name__,
            description=inspect.getdoc(function) or "",
            parameters={"type": "object", "properties": properties, "required": required},
            call=lambda arguments: function(**arguments),
            problem=partial(_misfit, function, hints),
        )

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's form."""
        described = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": described}


def _misfit(
    function: Callable[..., Any], hints: Mapping[str, Any], arguments: Mapping[str, Any]
) -> str:
    """Return what is wrong with a function's arguments, "" for nothing."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        return str(error)
    for name, value in arguments.items():
        hint = hints.get(name, str)
        if not _fits(value, hint):
            return f"{name} must be {_schema_of(hint)}, got {value!r:.80}"
    return ""


class Toolbox:
    """Functions that a model may call: their schemas, and the answers to its calls.

    A function's name, docstring and annotated parameters describe it to the model; it may be async.
    Its parameters are str, int, float, bool, list, dict or Literal[...]. An `art.Tool` has a schema
    of its own. A call that names no tool, or whose arguments do not fit, is answered with an error
    that the model can read. An exception of a function leaves as it is: the environment failed, not
    the model.
    """

    def __init__(self, functions: Iterable[Callable[..., Any] | Tool]) -> None:
        tools = (each if isinstance(each, Tool) else Tool.of(each) for each in functions)
        self._tools = {tool.name: tool for tool in tools}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form."""
        return [tool.schema for tool in self._tools.values()]

    async def answers(self, message: Message) -> list[Message]:
        """Return a message of the role "tool" for each call of a message; none without calls."""
        return [await self._answer(call) for call in message.get("tool_calls") or ()]

    async def _answer(self, call: Mapping[str, Any]) -> Message:
        function = call.get("function") or {}
        name = str(function.get("name"))
        found = await self._result(name, function.get("arguments"))
        text = found if isinstance(found, str) else json.dumps(found, default=str)
        return {"role": "tool", "tool_call_id": call.get("id"), "name": name, "content": text}

    async def _result(self, name: str, given: Any) -> Any:
        tool = self._tools.get(name)
        if tool is None:
            return f"error: there is no tool {name!r:.80}; there are {', '.join(self._tools)}"
        try:
            arguments = given if isinstance(given, Mapping) else json.loads(given or "{}")
        except (TypeError, ValueError, RecursionError):
            return f"error: the arguments of {name} are no JSON: {given!r:.80}"
        if not isinstance(arguments, Mapping):
            return f"error: the arguments of {name} must be a JSON object, got {given!r:.80}"
        problem = tool.problem(arguments)
        if problem:
            return f"error: {name}: {problem}"
        result = tool.call(arguments)
        return await result if inspect.isawaitable(result) else result


def _schema_of(hint: Any) -> dict[str, Any] | None:
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    kind = get_origin(hint) or hint
    return {"type": _KINDS[kind]} if kind in _KINDS else None


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    kind = get_origin(hint) or hint
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
