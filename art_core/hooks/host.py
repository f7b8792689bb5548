"""The host of plugins: it finds them, sets broken ones aside by name, and calls their hooks."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pluggy

from art_core.base.errors import ConfigError, PluginError, unknown
from art_core.hooks import hookspecs
from art_core.hooks.answers import OURS, SINGULAR, derived, offer_of, price
from art_core.hooks.hookspecs import OFFERS, check_hooks, hookimpl
from art_core.metrics.receipt import TokenRates, TokenUsage
from art_core.metrics.taxonomy import Taxonomy

if TYPE_CHECKING:
    from art_core.backends import BackendSpec
    from art_core.checks.finding import CheckSpec
    from art_core.hooks.commands import CommandSpec
    from art_core.hooks.environments import EnvironmentSpec
    from art_core.hooks.sandboxes import SandboxSpec
    from art_core.rl.advantages import AdvantageSpec
    from art_core.rl.losses import LossSpec
    from art_core.sinks.protocol import SinkSpec

log = logging.getLogger("art_core")
GROUP = "art_core"
S = TypeVar("S", "BackendSpec", "EnvironmentSpec", "SandboxSpec", "SinkSpec")


@attrs.frozen(kw_only=True)
class PluginInfo:
    """A plugin as `art plugins` lists it; `error` is None for one that works."""

    name: str
    version: str
    hooks: tuple[str, ...]
    error: str | None


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


def _instance_of(kind: type) -> Callable[[Any], Any]:
    def read(answer: Any) -> Any:
        if not isinstance(answer, kind):
            raise TypeError(f"{answer!r:.80} is not a {kind.__name__}")
        return answer

    return read


VALUES: dict[str, Callable[[Any], Any]] = {
    "art_rollup": derived,
    "art_usage": _instance_of(TokenUsage),
    "art_token_rates": _instance_of(TokenRates),
    "art_gpu_rate": price,
}
"""Validation of hooks whose answers are values."""


class Core:
    """The core's own implementations of the hooks, registered first."""

    @hookimpl
    def art_sinks(self) -> Sequence[SinkSpec]:
        """The console sink, and the doctor."""
        from art_core.hooks.doctor import doctor_sink
        from art_core.sinks.console import console_sink

        return [console_sink(), doctor_sink()]

    @hookimpl
    def art_sandboxes(self) -> Sequence[SandboxSpec]:
        """Processes of this machine, and containers."""
        from art_core.hooks.sandboxes import BUILT_IN

        return BUILT_IN

    @hookimpl
    def art_checks(self) -> Sequence[CheckSpec]:
        """The rules of `art doctor`."""
        from art_core.checks.rules import RULES

        return RULES

    @hookimpl
    def art_token_rates(
        self, provider: str, model: str, usage: TokenUsage | None
    ) -> TokenRates | None:
        """The default price books: of hosted training, and of API models."""
        from art_core.prices.book import book_rates
        from art_core.prices.tables import training_rates

        return training_rates(provider, model) or book_rates(provider, model, usage)

    @hookimpl
    def art_gpu_rate(self, device: str) -> float | None:
        """Default prices of devices, from `gpu_prices.json`; None for a device not in it."""
        from art_core.prices.tables import gpu_rate

        return gpu_rate(device)


@attrs.define
class Plugins:
    """The plugins of this process. pluggy calls their hooks, each within a guard: a plugin that
    breaks is set aside, by name, while the rest answer.
    """

    strict: bool = False
    problems: dict[str, PluginError] = attrs.field(factory=dict)
    _versions: dict[str, str] = attrs.field(factory=dict)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)
    _manager: pluggy.PluginManager = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def discover(cls) -> Plugins:
        """Load the built-in plugin and every installed one (entry-point group `art_core`).

        `ART_BLOCK=a,b` leaves plugins out before they are imported; with `ART_STRICT=1` a broken
        plugin raises.
        """
        plugins = cls(strict=os.environ.get("ART_STRICT", "") not in ("", "0"))
        plugins.register(Core(), "core")
        blocked = {name.strip() for name in os.environ.get("ART_BLOCK", "").split(",")}
        for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
            if entry.name not in blocked:
                version = entry.dist.version if entry.dist else ""
                plugins._versions.setdefault(entry.name, version)
                plugins._load(entry.name, entry.load)
        return plugins

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin object or module; the last one added is asked first."""
        self._load(name, lambda: plugin)

    def _load(self, name: str, load: Callable[[], object]) -> None:
        taken = self._manager.has_plugin(name)
        try:
            if taken:
                raise PluginError(f"another plugin has the name {name!r}")
            plugin = load()
            check_hooks(plugin)
            self._manager.register(plugin, name)
            self._guard(plugin)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            name = f"{name} (again)" if taken else name
            self.problems.pop(name, None)
            self._set_aside(name, error)

    def _guard(self, plugin: object) -> None:
        """Put a guard around each hook implementation of a registered plugin."""
        callers = self._manager.get_hookcallers(plugin) or ()
        found = [(c.name, i) for c in callers for i in c.get_hookimpls() if i.plugin is plugin]
        for hook, implementation in found:
            name = implementation.plugin_name
            read = VALUES.get(hook) or offer_of(name, OFFERS[hook])
            guard = Guard(name, implementation.function, read, self._set_aside)
            call = guard.wrap if implementation.wrapper else guard.call
            implementation.function = call  # type: ignore[misc]

    def _set_aside(self, name: str, error: BaseException) -> None:
        problem = PluginError(f"plugin {name!r} is broken: {type(error).__name__}: {error}")
        problem.__cause__ = error
        if self.strict:
            raise problem
        with self._lock:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            elif name in self.problems:
                return  # another thread, or another hook of the same call, was first
            self.problems[name] = problem
        log.warning("%s; it is left out", problem)

    def infos(self) -> list[PluginInfo]:
        """Return the loaded plugins and those that were set aside, by name."""
        found: dict[str, tuple[list[str], str | None]] = {
            name: (sorted(h.name for h in self._manager.get_hookcallers(plugin) or ()), None)
            for name, plugin in self._manager.list_name_plugin()
        }
        found |= {name: ([], str(problem)) for name, problem in self.problems.items()}
        return [
            PluginInfo(name=n, version=self._versions.get(n, ""), hooks=tuple(hooks), error=error)
            for n, (hooks, error) in sorted(found.items())
        ]

    def backends(self) -> dict[str, BackendSpec]:
        """Return the offered backends, by name."""
        return self._offers("art_backends")

    def sinks(self) -> dict[str, SinkSpec]:
        """Return the offered sinks, by name."""
        specs = self._offers("art_sinks").values()
        # `art sync` can make these again: the plugin's own have no options
        return {s.name: s if s.options else attrs.evolve(s, options={}) for s in specs}

    def commands(self) -> dict[str, CommandSpec]:
        """Return the commands that plugins add to `art`, by name."""
        return self._offers("art_commands")

    def environments(self) -> dict[str, EnvironmentSpec]:
        """Return the offered environments, by name."""
        return self._offers("art_environments")

    def losses(self) -> dict[str, LossSpec]:
        """Return the offered losses, by name, without the presets."""
        return self._offers("art_losses")

    def advantages(self) -> dict[str, AdvantageSpec]:
        """Return the offered advantages, by name."""
        return self._offers("art_advantages")

    def checks(self) -> dict[str, CheckSpec]:
        """Return the offered rules of `art doctor`, by name."""
        return self._offers("art_checks")

    def backend(self, name: str) -> BackendSpec:
        """Return a backend by name; ConfigError or PluginError names what to install."""
        return self._named("backend", name, self.backends())

    def sink(self, name: str) -> SinkSpec:
        """Return a sink by name; errors as `backend`."""
        return self._named("sink", name, self.sinks())

    def sandbox(self, name: str) -> SandboxSpec:
        """Return a sandbox by name; errors as `backend`."""
        return self._named("sandbox", name, self.sandboxes())

    def sandboxes(self) -> dict[str, SandboxSpec]:
        """Return the offered sandboxes, by name."""
        return self._offers("art_sandboxes")

    def environment(self, name: str) -> EnvironmentSpec:
        """Return an environment by name; errors as `backend`."""
        return self._named("environment", name, self.environments())

    def taxonomy(self) -> Taxonomy:
        """Return the built-in catalogue with the specs of all plugins."""
        from art_core.metrics.taxonomy import builtin_taxonomy

        taxonomy = builtin_taxonomy()
        for offer in self._manager.hook.art_metrics():
            try:
                taxonomy = taxonomy.extended(offer)
            except Exception as error:
                self._set_aside(offer.plugin, error)
        return taxonomy

    @property
    def derives(self) -> bool:
        """True if a plugin derives metrics (`art_rollup`)."""
        return bool(self._manager.hook.art_rollup.get_hookimpls())

    def rollup(
        self,
        leaves: Mapping[str, float],
        totals: Mapping[str, float],
        split: str,
        taken: Collection[str],
    ) -> dict[str, float]:
        """Ask all plugins for derived metrics of a row. `taken` keys are not changed, values that
        are not finite are left out, and names without a section get the split as theirs.
        """
        derived: dict[str, float] = {}
        for answer in self._manager.hook.art_rollup(leaves=leaves, totals=totals, split=split):
            placed = {k if "/" in k else f"{split}/{k}": v for k, v in answer.items()}
            new = {k: v for k, v in placed.items() if k not in taken and k not in derived}
            derived |= {k: v for k, v in new.items() if math.isfinite(v)}
        return derived

    def usage(self, response: Any, provider: str) -> TokenUsage | None:
        """Ask plugins to read a response's tokens; the first answer counts."""
        usage: TokenUsage | None = self._manager.hook.art_usage(
            response=response, provider=provider
        )
        return usage

    def token_rates(self, provider: str, model: str, usage: TokenUsage | None) -> TokenRates | None:
        """Ask plugins for a model's prices; the first answer counts."""
        rates: TokenRates | None = self._manager.hook.art_token_rates(
            provider=provider, model=model, usage=usage
        )
        return rates

    def gpu_rate(self, device: str) -> float | None:
        """Ask plugins for the US dollars of a device-hour; the first answer counts."""
        usd: float | None = self._manager.hook.art_gpu_rate(device=device)
        return usd

    def _offers(self, hook: str) -> dict[str, Any]:
        offers: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for offer in getattr(self._manager.hook, hook)():
            for spec in offer:
                if spec.name in offers:
                    raise PluginError(
                        f"{SINGULAR[hook]} {spec.name!r} is offered by "
                        f"the plugins {owner[spec.name]!r} and {offer.plugin!r}",
                        f"Uninstall one, or set ART_BLOCK={owner[spec.name]}.",
                    )
                offers[spec.name], owner[spec.name] = spec, offer.plugin
        return offers

    def _named(self, kind: str, name: str, offers: Mapping[str, S]) -> S:
        if name in offers:
            return offers[name]
        if problem := self.problems.get(name):
            raise PluginError(f"no {kind} {name!r}: {problem}") from problem.__cause__
        near = difflib.get_close_matches(name, OURS[kind] - offers.keys(), n=1)
        remedy = f"pip install art-{near[0]}" if near else ""
        raise ConfigError(unknown(kind, name, offers, known_as="installed"), remedy)


@functools.cache
def installed_plugins() -> Plugins:
    """Return the plugins of this process, discovered on first use."""
    return Plugins.discover()
