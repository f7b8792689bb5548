"""Guards around hook implementations validate answers; a plugin that breaks is set aside."""

from __future__ import annotations

import inspect
import math
import re
from argparse import ArgumentParser
from collections.abc import Callable, Generator, Iterable, Mapping
from types import ModuleType
from typing import Any

import attrs

from art_core.base.errors import MetricError, PluginError, unknown
from art_core.metrics.receipt import TokenRates, TokenUsage
from art_core.rl.losses import PRESETS, LossSpec

BREAKS = (Exception, SystemExit)
"""Exceptions for which a plugin is set aside; others, such as KeyboardInterrupt, are the user's."""


@attrs.frozen
class Guard:
    """The guard of one hook implementation; pluggy calls it in place of the plugin's function.

    `read` validates an answer that is not None. `set_aside` gets the plugin's name and the error.
    """

    plugin: str
    function: Callable[..., Any]
    read: Callable[[Any], Any]
    set_aside: Callable[[str, BaseException], None]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Return the answer; None from a plugin that breaks."""
        try:
            answer = self.function(*args, **kwargs)
            return None if answer is None else self.read(answer)
        except BREAKS as error:
            self.set_aside(self.plugin, error)
            return None

    def wrap(self, *args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
        """Run a wrapper around the other implementations. Their result stands if it breaks."""
        wrapper = self._start(*args, **kwargs)
        if wrapper is None:
            return (yield)
        try:
            result = yield
        except BaseException:
            wrapper.close()
            raise
        try:
            return self._finish(wrapper, result)
        except BREAKS as error:
            self.set_aside(self.plugin, error)
            return result

    def _start(self, *args: Any, **kwargs: Any) -> Generator[None, Any, Any] | None:
        error: BaseException
        try:
            wrapper: Generator[None, Any, Any] = self.function(*args, **kwargs)
            next(wrapper)
        except StopIteration:
            error = PluginError("a wrapper does not yield", "Yield once.")
        except BREAKS as raised:
            error = raised
        else:
            return wrapper
        self.set_aside(self.plugin, error)
        return None

    def _finish(self, wrapper: Generator[None, Any, Any], result: Any) -> Any:
        """Send the result into a wrapper, and return what it makes of it."""
        several = isinstance(result, list)
        try:
            wrapper.send(list(result) if several else result)
        except StopIteration as stop:
            if several:
                return [self.read(answer) for answer in stop.value if answer is not None]
            return None if stop.value is None else self.read(stop.value)
        raise PluginError("a wrapper yields a second time", "Yield once.")


class Offer(list[Any]):
    """The specs that one plugin offers, with the plugin's name."""

    def __init__(self, specs: Iterable[Any], plugin: str) -> None:
        super().__init__(specs)
        self.plugin = plugin


def guard(implementation: Any, hook: str, set_aside: Callable[[str, BaseException], None]) -> None:
    """Put a guard around an implementation that pluggy has registered."""
    plugin: str = implementation.plugin_name
    read = VALUES.get(hook) or _offer_of(plugin, OFFERS[hook])
    guarded = Guard(plugin, implementation.function, read, set_aside)
    implementation.function = guarded.wrap if implementation.wrapper else guarded.call


def check_hooks(plugin: object) -> None:
    """Raise PluginError for a hook that is misspelt, not marked, or a wrapper of the old style."""
    known = {*OFFERS, *VALUES}
    members = vars(plugin) if isinstance(plugin, ModuleType) else dict(inspect.getmembers(plugin))
    for name, member in members.items():
        marked = inspect.isroutine(member) and getattr(member, "art_core_impl", None)
        if marked and marked["hookwrapper"]:
            raise PluginError(
                f"hook {name!r} is a wrapper of the old style", "Use hookimpl(wrapper=True)."
            )
        if marked and (marked["specname"] or name) not in known:
            raise PluginError(unknown("hook", name, known))
        if inspect.isroutine(member) and name in known and not marked:
            raise PluginError(f"hook {name!r} is not marked", "Put @art_core.hookimpl above it.")


def _specs(specs: Iterable[Any]) -> list[Any]:
    return _checked(specs, lambda spec: callable(spec.create))


def _commands(specs: Iterable[Any]) -> list[Any]:
    checked = _specs(specs)
    for spec in checked:
        spec.create(ArgumentParser(prog=f"art {spec.name}"))
    return checked


def _backends(specs: Iterable[Any]) -> list[Any]:
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
            raise PluginError(f"it offers {spec!r:.80}, not a spec with a name and a create")
    return checked


def _losses(specs: Iterable[Any]) -> list[LossSpec]:
    checked = list(specs)
    for spec in checked:
        if not isinstance(spec, LossSpec) or not callable(spec.create):
            raise PluginError(f"it offers {spec!r:.80}, not a LossSpec")
        if spec.name in PRESETS or ":" in spec.name:
            raise PluginError(f"it offers a loss {spec.name!r}, a name that is taken")
    return checked


def _offer_of(plugin: str, check: Callable[[Any], list[Any]]) -> Callable[[Any], Offer]:
    def read(answer: Any) -> Offer:
        return Offer(check(answer), getattr(answer, "plugin", plugin))

    return read


def _instance_of(kind: type) -> Callable[[Any], Any]:
    def read(answer: Any) -> Any:
        if not isinstance(answer, kind):
            raise TypeError(f"{answer!r:.80} is not a {kind.__name__}")
        return answer

    return read


def _price(answer: Any) -> float:
    usd = float(answer)
    if not 0 <= usd < math.inf:
        raise ValueError(f"{usd} is not a price")
    return usd


def _derived(answer: Mapping[str, float]) -> dict[str, float]:
    if totals := [key for key in answer if "/cum/" in key]:
        raise MetricError(f"{totals[0]!r} is a total, which the core keeps")
    if costs := [key for key in answer if key.startswith("costs/")]:
        raise MetricError(f"{costs[0]!r} would be among the dollars that were paid")
    return {key: float(value) for key, value in answer.items()}


OFFERS: dict[str, Callable[[Any], list[Any]]] = {
    "art_backends": _backends,
    "art_sinks": _specs,
    "art_commands": _commands,
    "art_losses": _losses,
    "art_metrics": list,
}
"""Validation of hooks whose answers are lists of specs."""
VALUES: dict[str, Callable[[Any], Any]] = {
    "art_rollup": _derived,
    "art_usage": _instance_of(TokenUsage),
    "art_token_rates": _instance_of(TokenRates),
    "art_gpu_rate": _price,
}
"""Validation of hooks whose answers are values."""
