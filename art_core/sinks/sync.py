"""Delivery of missing rows in another process, to sinks made again with the options of the run."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ArtError, ConfigError, has_password, names_secret
from art_core.base.files import close_lock, read_json, replace_json
from art_core.log.reader import LoggedRun
from art_core.log.rundir import history_file
from art_core.sinks.cursor import count_after, load_cursor, lock_cursor
from art_core.sinks.delivery import DeliveryReport, Follower
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

LOOK_SECONDS = 0.5


@attrs.frozen
class Progress:
    """Rows still to deliver, and the last failure if the sink is failing."""

    missing: int
    error: str | None


def run_info(run: LoggedRun) -> RunInfo:
    """Describe a run as its trainer did, from `model.json` and the last row, or from the names of
    its directories if `model.json` cannot be read.
    """
    stored, state, last = run.model(), run.state(), run.last_row()
    known = {key: value for key, value in stored.items() if isinstance(value, str)}
    config = stored["config"]
    return RunInfo(
        project=known.get("project") or run.path.parent.parent.name,
        name=known.get("name") or run.path.name,
        run_dir=run.path,
        base_model=known.get("base_model"),
        attempt=max(last.attempt, 1) if last else 1,
        status=state.status,
        reason=state.reason,
        config=config if isinstance(config, dict) else {},
        taxonomy=run.taxonomy,
    )


def sync(spec: SinkSpec, run: RunInfo, timeout: float) -> Generator[Progress, None, DeliveryReport]:
    """Deliver a run's rows to a sink, from its cursor on; yield progress, return the report.

    Raises SinkError when the run's trainer, or another sync, serves the sink right now; ConfigError
    for a sink that takes new rows only, and for one that its settings can't make.
    """
    if not spec.backlog:
        raise ConfigError(f"sink {spec.name!r} takes only the rows of a run that is being trained")
    cursor_file = run.run_dir / "sinks" / f"{spec.name}.cursor"
    lock = lock_cursor(cursor_file)
    if lock >= 0:
        close_lock(lock)
    history = history_file(run.run_dir)
    yield Progress(count_after(history, load_cursor(cursor_file)), None)
    deadline = time.monotonic() + timeout
    create, refused = _noting_refusals(spec.create)
    follower = Follower(attrs.evolve(spec, create=create), run, history)
    follower.close(deadline, run.status, run.reason)
    shown_at = time.monotonic()
    while follower.at_work and time.monotonic() < deadline:
        time.sleep(0.01)
        if refused:
            # Settings stay wrong however long the caller waits.
            follower.close(time.monotonic(), run.status, run.reason)
            raise refused[0]
        if time.monotonic() - shown_at >= LOOK_SECONDS:
            shown_at = time.monotonic()
            yield Progress(follower.missing(), follower.error)
    return follower.join()


def _noting_refusals(create: Callable[[], Sink]) -> tuple[Callable[[], Sink], list[ConfigError]]:
    refused: list[ConfigError] = []

    def noting() -> Sink:
        try:
            return create()
        except ConfigError as error:
            refused.append(error)
            raise

    return noting, refused


FILE = "sinks.json"


def keep_options(
    run_dir: Path, specs: Iterable[SinkSpec], offers: Callable[[], Mapping[str, SinkSpec]]
) -> None:
    """Store in a run's directory the options of each sink; `offers` returns the installed sinks.

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
    """Return the name that a plugin gave a run's sink, which `named` may have changed."""
    return str(read_json(run_dir / FILE).get(name, {}).get("kind") or name)


def made_again(offered: SinkSpec, run_dir: Path, name: str = "") -> SinkSpec:
    """Return an installed sink, made with the options that the run's code gave. `name` is its name
    in the run, if that differs.

    Raises ConfigError if the options are unknown, or if the plugin cannot make a sink from them.
    """
    stored = read_json(run_dir / FILE).get(name or offered.name, {"options": {}})
    options = stored.get("options")
    if options is None:
        raise ConfigError(
            f"the run's code made the sink {offered.name!r} with options that the run does not "
            f"keep: {stored.get('unknown', 'they are missing')}",
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
    visible = {k: v for k, v in options.items() if not (isinstance(v, str) and names_secret(k))}
    for name, value in visible.items():
        if isinstance(value, str) and has_password(value):
            return {"options": None, "unknown": f"{name} holds a password"}
    try:
        stored: dict[str, Any] = orjson.loads(orjson.dumps(visible))
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
    """Return True if two callables are the same function with equal values."""
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
