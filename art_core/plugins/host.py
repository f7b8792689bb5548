"""Finds plugins, sets broken ones aside, and calls their hooks; the only user of pluggy's
manager.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pluggy

from art_core.errors import ConfigError, MetricError, PluginError, unknown
from art_core.metrics.taxonomy import Taxonomy
from art_core.plugins import hookspecs

if TYPE_CHECKING:
    from art_core.backends import BackendSpec
    from art_core.costs.rates import TokenRates
    from art_core.costs.usage import TokenUsage
    from art_core.sinks.protocol import SinkSpec

log = logging.getLogger("art_core")
GROUP = "art_core"
OURS = {
    "backend": frozenset({"local", "unsloth", "tinker", "serverless"}),
    "sink": frozenset({"wandb", "argus", "trackio", "mlflow", "tensorboard"}),
}
S = TypeVar("S", "BackendSpec", "SinkSpec")


@attrs.frozen(kw_only=True)
class PluginInfo:
    """A plugin as `art plugins` lists it; `error` is None for one that works."""

    name: str
    version: str
    hooks: tuple[str, ...]
    error: str | None


@attrs.define
class Plugins:
    """The plugins of this process. A broken one is set aside, by name, while the rest answer."""

    strict: bool = False
    problems: dict[str, PluginError] = attrs.field(factory=dict)
    _versions: dict[str, str] = attrs.field(factory=dict)
    _manager: pluggy.PluginManager = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def discover(cls) -> Plugins:
        """Load the built-in plugin and every installed one (entry-point group `art_core`).

        `ART_BLOCK=a,b` leaves plugins out before they are imported; `ART_STRICT=1` raises what is
        broken.
        """
        from art_core.plugins import builtin

        plugins = cls(strict=os.environ.get("ART_STRICT", "") not in ("", "0"))
        plugins.register(builtin, "core")
        blocked = {name.strip() for name in os.environ.get("ART_BLOCK", "").split(",")}
        for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
            if entry.name not in blocked:
                plugins._versions[entry.name] = entry.dist.version if entry.dist else ""
                plugins._load(entry.name, entry.load)
        return plugins

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin object or module; the last one added is asked first."""
        self._load(name, lambda: plugin)

    def _load(self, name: str, load: Callable[[], object]) -> None:
        try:
            plugin = load()
            _check_hooks(plugin)
            self._manager.register(plugin, name)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._set_aside(name, error)

    def _set_aside(self, name: str, error: BaseException) -> None:
        problem = PluginError(f"plugin {name!r} is broken: {type(error).__name__}: {error}")
        problem.__cause__ = error
        if self.strict:
            raise problem
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        self.problems[name] = problem
        log.warning("%s; it is left out", problem)

    def infos(self) -> list[PluginInfo]:
        """Return what is loaded and what was set aside, by name."""
        working = [
            PluginInfo(
                name=name,
                version=self._versions.get(name, ""),
                hooks=tuple(sorted(h.name for h in self._manager.get_hookcallers(plugin) or ())),
                error=None,
            )
            for name, plugin in self._manager.list_name_plugin()
        ]
        broken = [
            PluginInfo(
                name=name, version=self._versions.get(name, ""), hooks=(), error=str(problem)
            )
            for name, problem in self.problems.items()
        ]
        return sorted(working + broken, key=lambda info: info.name)

    def backends(self) -> dict[str, BackendSpec]:
        """Return the backends on offer, by name."""
        return self._offers("art_backends")

    def sinks(self) -> dict[str, SinkSpec]:
        """Return the sinks on offer, by name."""
        return self._offers("art_sinks")

    def backend(self, name: str) -> BackendSpec:
        """Return a backend by name; ConfigError or PluginError says what there is and what to
        install.
        """
        return self._named("backend", name, self.backends())

    def sink(self, name: str) -> SinkSpec:
        """Return a sink by name; errors as `backend`."""
        return self._named("sink", name, self.sinks())

    def taxonomy(self) -> Taxonomy:
        """Return the built-in catalogue with the specs of all plugins."""
        from art_core.metrics.catalogue import builtin_taxonomy

        taxonomy = builtin_taxonomy()
        for name, specs in self._collect("art_metrics"):
            try:
                taxonomy = taxonomy.extended(specs)
            except MetricError as error:
                self._set_aside(name, error)
        return taxonomy

    @property
    def derives(self) -> bool:
        """True when a plugin derives metrics (`art_rollup`)."""
        return bool(self._manager.hook.art_rollup.get_hookimpls())

    def rollup(
        self,
        leaves: Mapping[str, float],
        totals: Mapping[str, float],
        split: str,
        taken: Collection[str],
    ) -> dict[str, float]:
        """Ask all plugins for derived metrics of a row; `taken` keys stay as they are, failures are
        left out.
        """
        derived: dict[str, float] = {}
        for _, answer in self._collect("art_rollup", leaves=leaves, totals=totals, split=split):
            new = {k: float(v) for k, v in answer.items() if k not in taken and k not in derived}
            derived |= {k: v for k, v in new.items() if math.isfinite(v)}
        return derived

    def usage(self, response: Any, provider: str) -> TokenUsage | None:
        """Ask plugins to read a response's tokens; the first answer counts."""
        answer: TokenUsage | None = self._manager.hook.art_usage(
            response=response, provider=provider
        )
        return answer

    def token_rates(self, provider: str, model: str, usage: TokenUsage | None) -> TokenRates | None:
        """Ask plugins for a model's prices; the first answer counts."""
        answer: TokenRates | None = self._manager.hook.art_token_rates(
            provider=provider, model=model, usage=usage
        )
        return answer

    def gpu_rate(self, device: str) -> float | None:
        """Ask plugins for a device's price in US dollars per device-hour; the first answer
        counts.
        """
        answer: float | None = self._manager.hook.art_gpu_rate(device=device)
        return answer

    def _collect(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        answers: list[tuple[str, Any]] = []
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            given = {name: arguments[name] for name in implementation.argnames}
            try:
                answer = implementation.function(**given)
            except Exception as error:
                self._set_aside(implementation.plugin_name, error)
            else:
                if answer is not None:
                    answers.append((implementation.plugin_name, answer))
        return answers

    def _offers(self, hook: str) -> dict[str, Any]:
        offers: dict[str, Any] = {}
        owner: dict[str, str] = {}
        for plugin, specs in self._collect(hook):
            for spec in specs:
                if spec.name in offers:
                    raise PluginError(
                        f"{hook.removeprefix('art_').rstrip('s')} {spec.name!r} is offered by "
                        f"the plugins {owner[spec.name]!r} and {plugin!r}",
                        f"Uninstall one, or set ART_BLOCK={plugin}.",
                    )
                offers[spec.name], owner[spec.name] = spec, plugin
        return offers

    def _named(self, kind: str, name: str, offers: Mapping[str, S]) -> S:
        if name in offers:
            return offers[name]
        if name in self.problems:
            raise PluginError(f"no {kind} {name!r}: {self.problems[name]}") from self.problems[
                name
            ].__cause__
        remedy = f"pip install art-{name}" if name in OURS[kind] else ""
        raise ConfigError(unknown(kind, name, offers, known_as="installed"), remedy)


def _check_hooks(plugin: object) -> None:
    known = {name for name in vars(hookspecs) if name.startswith("art_")}
    members = vars(plugin) if isinstance(plugin, ModuleType) else dict(inspect.getmembers(plugin))
    for name, member in members.items():
        if getattr(member, "art_core_impl", None) is not None and name not in known:
            raise PluginError(unknown("hook", name, known))


def accepted_options(create: Callable[..., Any], options: Iterable[str], kind: str) -> None:
    """Raise ConfigError for options that `create` does not take, naming those it does."""
    parameters = inspect.signature(create).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known: Sequence[str] = [p.name for p in parameters]
    for option in options:
        if option not in known:
            raise ConfigError(unknown(f"{kind} option", option, known))


@functools.cache
def installed_plugins() -> Plugins:
    """Return the plugins of this process, discovered on first use."""
    return Plugins.discover()
