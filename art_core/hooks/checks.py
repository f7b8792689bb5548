"""What a plugin gives, looked at before it is used: hooks, specs, answers, options."""

from __future__ import annotations

import inspect
import math
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, TypeVar

from art_core.base.errors import ConfigError, PluginError, unknown
from art_core.hooks import hookspecs
from art_core.rl.custom import LossSpec
from art_core.rl.presets import PRESETS

T = TypeVar("T")


def check_hooks(plugin: object) -> None:
    """Raise PluginError for a hook that is misspelt, not marked, or a wrapper of others."""
    known = {name for name in vars(hookspecs) if name.startswith("art_")}
    members = vars(plugin) if isinstance(plugin, ModuleType) else dict(inspect.getmembers(plugin))
    for name, member in members.items():
        marked = inspect.isroutine(member) and getattr(member, "art_core_impl", None)
        if marked and (marked["wrapper"] or marked["hookwrapper"]):
            raise PluginError(f"hook {name!r} is a wrapper", "Give an answer of your own.")
        if marked and (marked["specname"] or name) not in known:
            raise PluginError(unknown("hook", name, known))
        if inspect.isroutine(member) and name in known and not marked:
            raise PluginError(f"hook {name!r} is not marked", "Put @art_core.hookimpl above it.")


def checked_specs(specs: Iterable[Any]) -> list[Any]:
    """Return specs of sinks; PluginError for what is none."""
    return _checked(specs, lambda spec: callable(spec.create))


def checked_commands(specs: Iterable[Any]) -> list[Any]:
    """Return specs of commands whose arguments a parser has taken; PluginError for what is none."""
    checked = checked_specs(specs)
    for spec in checked:
        spec.create(ArgumentParser(prog=f"art {spec.name}"))
    return checked


def checked_backends(specs: Iterable[Any]) -> list[Any]:
    """Return specs of backends, whose `create` may be a text; PluginError for what is none."""

    def creates(spec: Any) -> bool:
        if isinstance(spec.create, str) and not re.fullmatch(r"[\w.]+:[\w.]+", spec.create):
            raise PluginError(
                f"its backend {spec.name!r} is to be made by {spec.create!r}", 'Give "module:name".'
            )
        return isinstance(spec.create, str) or callable(spec.create)

    return _checked(specs, creates)


def _checked(specs: Iterable[Any], creates: Callable[[Any], bool]) -> list[Any]:
    checked = list(specs)
    for spec in checked:
        if not isinstance(getattr(spec, "name", None), str) or not creates(spec):
            raise PluginError(f"it offers {spec!r:.80}, which is no spec with a name and a create")
    return checked


def checked_losses(specs: Iterable[Any]) -> list[LossSpec]:
    """Return specs of losses; PluginError for what is none, or has the name of a preset."""
    checked = list(specs)
    for spec in checked:
        if not isinstance(spec, LossSpec) or not callable(spec.create):
            raise PluginError(f"it offers {spec!r:.80}, which is no LossSpec")
        if spec.name in PRESETS or ":" in spec.name:
            raise PluginError(f"it offers a loss {spec.name!r}, a name that is taken")
    return checked


def instance_of(kind: type[T]) -> Callable[[Any], T]:
    """Return a function that raises TypeError for an answer of another type."""

    def read(answer: Any) -> T:
        if not isinstance(answer, kind):
            raise TypeError(f"{answer!r:.80} is not a {kind.__name__}")
        return answer

    return read


def price(answer: Any) -> float:
    """Return a price as a float; ValueError for one that is negative or not finite."""
    usd = float(answer)
    if not 0 <= usd < math.inf:
        raise ValueError(f"{usd} is not a price")
    return usd


def options_of(create: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that `create` takes by name."""
    parameters = inspect.signature(create).parameters.values()
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def option_names(create: Callable[..., Any]) -> set[str]:
    """Return the names of the options that `create` takes; none where it does not name them."""
    try:
        return {parameter.name for parameter in options_of(create)}
    except (TypeError, ValueError):
        return set()  # written in C


def accepted_options(create: Callable[..., Any], options: Iterable[str], kind: str) -> None:
    """Raise ConfigError for options that `create` does not take, and for those that it misses."""
    given, named = set(options), options_of(create)
    parameters = inspect.signature(create).parameters.values()
    known = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option in sorted(given.difference(known)):
            raise ConfigError(unknown(f"{kind} option", option, known))
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigError(f"{kind} needs {', '.join(missing)}", f"Give {missing[0]}=...")
