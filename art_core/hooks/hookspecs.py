"""The hooks, and the checks of what plugins offer. A plugin's entry-point module implements some of
them with `@art_core.hookimpl`.
"""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from art_core.base.errors import PluginError, unknown
from art_core.rl.advantages import BASELINES, AdvantageSpec
from art_core.rl.losses import PRESETS, LossSpec

if TYPE_CHECKING:
    from art_core.backends import BackendSpec
    from art_core.checks.finding import CheckSpec
    from art_core.hooks.commands import CommandSpec
    from art_core.hooks.environments import EnvironmentSpec
    from art_core.hooks.sandboxes import SandboxSpec
    from art_core.metrics.receipt import TokenRates, TokenUsage
    from art_core.metrics.taxonomy import MetricSpec
    from art_core.sinks.protocol import SinkSpec

hookspec = pluggy.HookspecMarker("art_core")
hookimpl = pluggy.HookimplMarker("art_core")


@hookspec
def art_backends() -> Sequence[BackendSpec]:
    """Offer backends: places where weights are trained and served."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_sinks() -> Sequence[SinkSpec]:
    """Offer sinks: places where metric rows go."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_commands() -> Sequence[CommandSpec]:
    """Offer commands of `art`."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_environments() -> Sequence[EnvironmentSpec]:
    """Offer environments: tasks that `art env` lists, checks and plays."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_sandboxes() -> Sequence[SandboxSpec]:
    """Offer sandboxes: places that run commands apart from this program."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_losses() -> Sequence[LossSpec]:
    """Offer losses: functions from log-probs and advantages to the loss of each token."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_advantages() -> Sequence[AdvantageSpec]:
    """Offer advantages: functions from the trajectories of a group to an advantage of each."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_checks() -> Sequence[CheckSpec]:
    """Offer rules of `art doctor`: functions from the curves of a run to findings."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_metrics() -> Sequence[MetricSpec]:
    """Add metric sections and keys, with unit, combine rule and direction."""
    raise AssertionError("a hook's specification is never called")


@hookspec
def art_rollup(
    leaves: Mapping[str, float], totals: Mapping[str, float], split: str
) -> Mapping[str, float] | None:
    """Derive new metrics of a row from its leaves and the run's totals; existing keys stay."""


@hookspec(firstresult=True)
def art_usage(response: Any, provider: str) -> TokenUsage | None:
    """Read the used tokens from a provider's response, or from a chunk of a streamed one."""


@hookspec(firstresult=True)
def art_token_rates(provider: str, model: str, usage: TokenUsage | None) -> TokenRates | None:
    """Price a model's tokens, in US dollars per million."""


@hookspec(firstresult=True)
def art_gpu_rate(device: str) -> float | None:
    """Price a device, in US dollars per device-hour."""


def _specs(specs: Iterable[Any]) -> list[Any]:
    return _checked(specs, lambda spec: callable(spec.create))


def _commands(specs: Iterable[Any]) -> list[Any]:
    checked = _specs(specs)
    for spec in checked:
        spec.create(ArgumentParser(prog=f"art {spec.name}"))
    return checked


def _imported(specs: Iterable[Any], noun: str) -> list[Any]:
    def creates(spec: Any) -> bool:
        if isinstance(spec.create, str) and not _is_path(spec.create):
            raise PluginError(
                f"its {noun} {spec.name!r} is to be made by {spec.create!r}", 'Give "module:name".'
            )
        return isinstance(spec.create, str) or callable(spec.create)

    return _checked(specs, creates)


def _environments(specs: Iterable[Any]) -> list[Any]:
    def has_target(spec: Any) -> bool:
        return callable(spec.target) or _is_path(spec.target)

    return _checked(specs, has_target, needs="target")


def _checks(specs: Iterable[Any]) -> list[Any]:
    return _checked(specs, lambda spec: callable(spec.check), needs="check")


def _is_path(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch(r"[\w.]+:[\w.]+", text) is not None


def _checked(
    specs: Iterable[Any], creates: Callable[[Any], bool], needs: str = "create"
) -> list[Any]:
    checked = list(specs)
    for spec in checked:
        if not isinstance(getattr(spec, "name", None), str) or not creates(spec):
            raise PluginError(f"it offers {spec!r:.80}, not a spec with a name and a {needs}")
    return checked


def _functions(
    specs: Iterable[Any], kind: type[LossSpec | AdvantageSpec], noun: str, taken: Iterable[str]
) -> list[Any]:
    checked = list(specs)
    for spec in checked:
        if not isinstance(spec, kind) or not callable(spec.create):
            raise PluginError(f"it offers {spec!r:.80}, not a {kind.__name__}")
        if spec.name in taken or ":" in spec.name:
            raise PluginError(f"it offers {noun} {spec.name!r}, a name that is taken")
    return checked


OFFERS: dict[str, Callable[[Any], list[Any]]] = {
    "art_backends": partial(_imported, noun="backend"),
    "art_sinks": _specs,
    "art_commands": _commands,
    "art_environments": _environments,
    "art_losses": partial(_functions, kind=LossSpec, noun="a loss", taken=PRESETS),
    "art_advantages": partial(_functions, kind=AdvantageSpec, noun="advantages", taken=BASELINES),
    "art_metrics": list,
    "art_checks": _checks,
    "art_sandboxes": partial(_imported, noun="sandbox"),
}
"""Validation of hooks whose answers are lists of specs."""
VALUES = ("art_rollup", "art_usage", "art_token_rates", "art_gpu_rate")
"""Hooks whose answers are values."""


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
