"""The reference of the public names, made from their signatures and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import attrs

import art_core as art

EMPTY = {"dict": "{}", "list": "[]", "set": "set()", "tuple": "()"}
FOREIGN = {"hookimpl"}
"""Names of other libraries, whose docstrings are written for those."""


def reference() -> str:
    """Return a section for each public name: functions, then classes, then errors."""
    things = {name: getattr(art, name) for name in art.__all__ if name not in FOREIGN}
    classes = {name: thing for name, thing in things.items() if inspect.isclass(thing)}
    errors = {name: c for name, c in classes.items() if issubclass(c, BaseException)}
    parts = {
        "Functions": {n: t for n, t in things.items() if n not in classes},
        "Classes": {n: t for n, t in classes.items() if n not in errors},
        "Errors": errors,
    }
    lines: list[str] = []
    for title, members in parts.items():
        lines += [f"## {title}", ""]
        for name, thing in members.items():
            lines += entry(f"art.{name}", thing)
    return "\n".join(lines).rstrip()


def entry(
    title: str, thing: Any, *, written: str | None = None, members: bool = True
) -> Iterator[str]:
    """Yield the section of a function or class: its call, docstring, and public methods."""
    yield from (f"### {title}", "")
    if not inspect.isclass(thing) or _has_a_signature(thing):
        yield from _code(written or title, thing)
    yield from _text(thing)
    if inspect.isclass(thing) and members:
        base = thing.__base__
        if base.__name__ in art.__all__ and base is not art.ArtError:
            yield from (f"It also has the methods of `art.{base.__name__}`.", "")
        for method, member in vars(thing).items():
            if not method.startswith("_"):
                yield from _member(method, member)


def _has_a_signature(cls: type) -> bool:
    """Return whether a user makes objects of a class: not of a protocol."""
    return not getattr(cls, "_is_protocol", False) and ("__init__" in vars(cls) or attrs.has(cls))


def _member(name: str, member: Any) -> Iterator[str]:
    function = getattr(member, "__func__", member)
    if isinstance(member, property):
        yield from (f"`{name}` (property):", "")
        yield from _text(member)
    elif inspect.isfunction(function):
        yield from _code(f".{name}", function)
        yield from _text(function)


def _code(name: str, thing: Callable[..., Any]) -> Iterator[str]:
    begins = "await " if inspect.iscoroutinefunction(thing) else ""
    yield from ("```", f"{begins}{_call(name, thing)}", "```", "")


def _text(thing: Any) -> Iterator[str]:
    if text := inspect.getdoc(thing):
        yield from (text, "")


def _call(name: str, thing: Callable[..., Any]) -> str:
    """Return a call with all parameters, one per line if it is long."""
    signature = inspect.signature(thing)
    parts = list(_parameters(signature, _factories(thing)))
    result = signature.return_annotation
    ends = "" if inspect.isclass(thing) or result is signature.empty else f" -> {_type(result)}"
    line = f"{name}({', '.join(parts)}){ends}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){ends}"


def _parameters(signature: inspect.Signature, made: dict[str, str]) -> Iterator[str]:
    given = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    for place, parameter in enumerate(given):
        by_name = parameter.kind is parameter.KEYWORD_ONLY
        before = given[place - 1].kind if place else parameter.POSITIONAL_ONLY
        if by_name and before not in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL):
            yield "*"
        yield _parameter(parameter, made)


def _parameter(parameter: inspect.Parameter, made: dict[str, str]) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {made.get(parameter.name) or _value(parameter.default)}"


def _factories(thing: Any) -> dict[str, str]:
    """Return how a class makes the defaults that are new for each object."""
    if not (inspect.isclass(thing) and attrs.has(thing)):
        return {}
    factories = {f.alias: f.default for f in attrs.fields(thing)}
    return {
        name or "": EMPTY.get(made.factory.__name__, "...")
        for name, made in factories.items()
        if isinstance(made, attrs.Factory)  # type: ignore[arg-type]
    }


def _value(default: Any) -> str:
    """Return a default as it is written; a function, or an object without a short form, by name."""
    text = repr(default)
    return text if " at 0x" not in text else str(getattr(default, "__name__", "..."))


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
