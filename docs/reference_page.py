"""Write the reference of the public names from their signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs

import art_core as art


def reference() -> str:
    """Return a section for each public name: functions, then classes, then errors."""
    things = {name: getattr(art, name) for name in art.__all__}
    classes = {name: thing for name, thing in things.items() if inspect.isclass(thing)}
    errors = {name: c for name, c in classes.items() if issubclass(c, BaseException)}
    parts = [
        ("Functions", {n: t for n, t in things.items() if n not in classes}),
        ("Classes", {n: t for n, t in classes.items() if n not in errors}),
        ("Errors", errors),
    ]
    lines: list[str] = []
    for title, members in parts:
        lines += [f"## {title}", ""]
        for name, thing in members.items():
            lines += _section(name, thing)
    return "\n".join(lines).rstrip()


def _section(name: str, thing: Any) -> Iterator[str]:
    yield from (f"### art.{name}", "")
    if _is_ours(thing) or not inspect.isclass(thing):
        yield from ("```", _call(f"art.{name}", thing), "```", "")
    base = next((b for b in getattr(thing, "__bases__", ()) if b.__name__ in art.__all__), None)
    if base is not None and not issubclass(thing, BaseException):
        yield from (f"It has the methods of `art.{base.__name__}`, and:", "")
    yield from _text(thing)
    if inspect.isclass(thing):
        for method, member in vars(thing).items():
            if not method.startswith("_"):
                yield from _member(method, member)


def _is_ours(thing: Any) -> bool:
    return "__init__" in vars(thing) or attrs.has(thing) if inspect.isclass(thing) else True


def _member(name: str, member: Any) -> Iterator[str]:
    function = getattr(member, "__func__", member)
    if isinstance(member, property):
        yield from (f"**`{name}`**: property.", "")
        yield from _text(member)
    elif inspect.isfunction(function):
        begins = "async " if inspect.iscoroutinefunction(function) else ""
        yield from ("```", f"{begins}{_call(f'.{name}', function)}", "```", "")
        yield from _text(function)


def _text(thing: Any) -> Iterator[str]:
    if text := inspect.getdoc(thing):
        yield from (text, "")


def _call(name: str, thing: Callable[..., Any]) -> str:
    """Return a call with all parameters, one per line if it is long."""
    signature = inspect.signature(thing)
    defaults = _factories(thing)
    parts = []
    marked = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            parts.append("*")
        marked = marked or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        parts.append(_parameter(parameter, defaults))
    ends = ""
    if not inspect.isclass(thing) and signature.return_annotation is not signature.empty:
        ends = f" -> {_type(signature.return_annotation)}"
    line = f"{name}({', '.join(parts)}){ends}"
    if len(line) <= 100:
        return line
    return f"{name}(\n    " + ",\n    ".join(parts) + f",\n){ends}"


def _parameter(parameter: inspect.Parameter, defaults: dict[str, str]) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = defaults.get(parameter.name) or _value(parameter.default)
    return f"{text} = {default}"


def _factories(thing: Any) -> dict[str, str]:
    """Return how a class makes the defaults that are new for each object."""
    if not (inspect.isclass(thing) and attrs.has(thing)):
        return {}
    made = {f.alias: f.default for f in attrs.fields(thing) if isinstance(f.default, attrs.Factory)}
    empty = {"dict": "{}", "list": "[]", "set": "set()", "tuple": "()"}
    return {
        name: empty.get(default.factory.__name__, f"{default.factory.__name__.lstrip('_')}()")
        for name, default in made.items()
    }


def _value(default: Any) -> str:
    if callable(default) and hasattr(default, "__name__"):
        return str(default.__name__)
    text = repr(default)
    return "..." if re.search(r" at 0x", text) else text


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
