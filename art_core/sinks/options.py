"""The options by which code made a run's sinks, kept so that `art sync` can make them again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from art_core.base.errors import ArtError, ConfigError, has_password, names_secret
from art_core.base.files import read_json, replace_json
from art_core.sinks.protocol import SinkSpec

FILE = "sinks.json"


def keep_options(
    run_dir: Path, specs: Iterable[SinkSpec], offers: Callable[[], Mapping[str, SinkSpec]]
) -> None:
    """Keep in a run's directory how each sink was made; `offers` returns the installed sinks.

    Secrets are left out. Options that can't be kept are recorded as unknown, with the reason.
    """
    chosen = {
        spec.name: _stored(spec, offers) | ({"kind": spec.kind} if spec.kind else {})
        for spec in specs
        if spec.backlog
    }
    try:
        before = read_json(run_dir / FILE)
    except ConfigError:
        before = {}
    if before | chosen != before:
        replace_json(run_dir / FILE, before | chosen)


def kind_of(run_dir: Path, name: str) -> str:
    """Return the name under which a plugin offers a run's sink, which `named` may have changed."""
    return str(read_json(run_dir / FILE).get(name, {}).get("kind") or name)


def made_again(offered: SinkSpec, run_dir: Path, name: str = "") -> SinkSpec:
    """Return an installed sink, made with the options that the run's code gave. `name` is its name
    in the run, where that differs.

    Raises ConfigError when these are unknown, or when the plugin can't make a sink from them.
    """
    kept = read_json(run_dir / FILE).get(name or offered.name, {"options": {}})
    options = kept.get("options")
    if options is None:
        raise ConfigError(
            f"the run's code made the sink {offered.name!r} with options that the run does not "
            f"keep: {kept.get('unknown', 'they are missing')}",
            "Open the run again with that sink, which delivers the rest; or add --as-installed to "
            "deliver to the sink as it is set up here.",
        )
    if not options:
        return offered
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    if offered.factory is None:
        raise ConfigError(
            f"the run's code made the sink {offered.name!r} with {given}; the plugin that is "
            "installed has no factory to make it so",
            "Open the run again with that sink, which delivers the rest; a plugin gives its "
            "factory as SinkSpec(factory=...).",
        )
    try:
        inspect.signature(offered.factory).bind(**options)
        return offered.factory(**options)
    except TypeError as error:
        raise ConfigError(
            f"the run's code made the sink {offered.name!r} with {given}, which the installed "
            f"plugin does not take: {error}",
            "Install the version of the plugin that the run used.",
        ) from error


def _stored(spec: SinkSpec, offers: Callable[[], Mapping[str, SinkSpec]]) -> dict[str, Any]:
    options = spec.options
    if options is None:
        options = {} if _is_offered(spec, offers) else None
    if options is None:
        return {"options": None, "unknown": "its SinkSpec names no options"}
    shown = {k: v for k, v in options.items() if not (isinstance(v, str) and names_secret(k))}
    for name, value in shown.items():
        if isinstance(value, str) and has_password(value):
            return {"options": None, "unknown": f"{name} holds a password"}
    try:
        stored: dict[str, Any] = orjson.loads(orjson.dumps(shown))
    except TypeError as error:
        return {"options": None, "unknown": f"they are not JSON values ({error})"}
    return {"options": stored}


def _is_offered(spec: SinkSpec, offers: Callable[[], Mapping[str, SinkSpec]]) -> bool:
    """Return True if code made the sink just as its plugin offers it."""
    try:
        offered = offers().get(spec.kind or spec.name)
        return offered is not None and _alike(spec.create, offered.create)
    except (ArtError, ValueError, TypeError):  # of plugins in conflict; of values compared
        return False


def _alike(one: Any, other: Any) -> bool:
    """Return True if two callables are one, or one function over equal values."""
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        same = (one.args, one.keywords) == (other.args, other.keywords)
        return same and _alike(one.func, other.func)
    if one == other:
        return True
    if not (inspect.isfunction(one) and inspect.isfunction(other)):
        return False
    return one.__code__ is other.__code__ and _bound(one) == _bound(other)


def _bound(function: Any) -> tuple[Any, ...]:
    cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return cells, function.__defaults__, function.__kwdefaults__
