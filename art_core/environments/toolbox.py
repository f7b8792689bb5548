"""Functions as tools: their schemas for the model, and the answers to its calls."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
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


@attrs.frozen
class _Tool:
    function: Callable[..., Any]
    hints: Mapping[str, Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> _Tool:
        hints = {k: v for k, v in get_type_hints(function).items() if k != "return"}
        for name, hint in hints.items():
            if _schema_of(hint) is None:
                raise ConfigError(
                    f"the tool {function.__name__!r} has a parameter {name!r} of the type {hint}",
                    "Take str, int, float, bool, list, dict or Literal[...].",
                )
        return cls(function, hints)

    @property
    def schema(self) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters
        required = [n for n, p in parameters.items() if p.default is p.empty]
        properties = {name: _schema_of(self.hints.get(name, str)) for name in parameters}
        form = {"type": "object", "properties": properties, "required": required}
        described = {
            "name": self.function.__name__,
            "description": inspect.getdoc(self.function) or "",
            "parameters": form,
        }
        return {"type": "function", "function": described}

    def problem(self, arguments: Mapping[str, Any]) -> str:
        """Return what is wrong with arguments, "" for nothing."""
        try:
            inspect.signature(self.function).bind(**arguments)
        except TypeError as error:
            return str(error)
        for name, value in arguments.items():
            hint = self.hints.get(name, str)
            if not _fits(value, hint):
                return f"{name} must be {_schema_of(hint)}, got {value!r:.80}"
        return ""


class Toolbox:
    """Functions that a model may call: their schemas, and the answers to its calls.

    A function's name, docstring and annotated parameters describe it to the model; it may be async.
    Its parameters are str, int, float, bool, list, dict or Literal[...]. A call that names no
    function, or whose arguments do not fit, is answered with an error that the model can read. An
    exception of a function leaves as it is: the environment failed, not the model.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._tools = {function.__name__: _Tool.of(function) for function in functions}

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
        result = tool.function(**arguments)
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
