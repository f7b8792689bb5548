"""Delivery without a trainer: brings one sink what it has not got yet, in another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import close_lock, read_json
from art_core.log.history import last_row
from art_core.log.rundir import RunState
from art_core.sinks.cursor import count_after, load_cursor, lock_cursor
from art_core.sinks.delivery import DeliveryReport, Follower
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

LOOK_SECONDS = 0.5


@attrs.frozen
class Progress:
    """Rows still to deliver, and the last failure if the sink is failing."""

    missing: int
    error: str | None


def run_info(run_dir: Path, state: RunState) -> RunInfo:
    """Describe a run as its trainer did, from `model.json` and the last row; by its directory's
    names where those can't be read.
    """
    try:
        stored = read_json(run_dir / "model.json")
    except (OSError, ValueError):
        stored = {}
    known = {key: value for key, value in stored.items() if isinstance(value, str)}
    config = stored.get("config")
    last = last_row(run_dir / "history.jsonl")
    return RunInfo(
        project=known.get("project") or run_dir.parent.parent.name,
        name=known.get("name") or run_dir.name,
        run_dir=run_dir,
        base_model=known.get("base_model"),
        attempt=max(last.attempt, 1) if last else 1,
        status=state.status,
        reason=state.reason,
        config=config if isinstance(config, dict) else {},
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
    history = run.run_dir / "history.jsonl"
    yield Progress(count_after(history, load_cursor(cursor_file)), None)
    deadline = time.monotonic() + timeout
    create, refused = _noting_refusals(spec.create)
    follower = Follower(attrs.evolve(spec, create=create), run, history)
    follower.close(deadline, run.status, run.reason)
    said = time.monotonic()
    while follower.at_work and time.monotonic() < deadline:
        time.sleep(0.01)
        if refused:
            # Settings do not mend themselves while somebody waits.
            follower.close(time.monotonic(), run.status, run.reason)
            raise refused[0]
        if time.monotonic() - said >= LOOK_SECONDS:
            said = time.monotonic()
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
