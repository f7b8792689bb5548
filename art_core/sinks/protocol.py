"""Ninth stop: what a sink is. A class with three methods, and a spec that names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from art_core.metrics.row import MetricsRow


@attrs.frozen(kw_only=True)
class RunInfo:
    """Which run the rows belong to. `config` is what the user gave the model; `attempt` counts the
    run's openings. `status` is "running" while rows come; in `Sink.close` it is what the run ended
    as: "finished", "failed", or what `model.close(status=)` said; `reason` is then why it failed,
    where that is known: an exception's type and message, without secrets.
    """

    project: str
    name: str
    run_dir: Path
    base_model: str | None = None
    attempt: int = 1
    status: str = "running"
    reason: str | None = None
    config: dict[str, Any] = attrs.field(factory=dict)


class Sink(Protocol):
    """Takes rows, on a thread of its own; what it raises is retried, and no trainer sees it."""

    def open(self, run: RunInfo) -> None:
        """Get ready; called before the first row, and again after a failure of this call."""

    def write(self, rows: list[MetricsRow]) -> None:
        """Take rows, in order. A row may come twice: drop repeats by `row.seq`."""

    def close(self, run: RunInfo) -> None:
        """Finish; called after the last row of this attempt, and again if it raised. `run.status`
        says how the run ended.
        """


@attrs.frozen(kw_only=True)
class SinkSpec:
    """A sink offered by a plugin: `create()` imports what is heavy and returns a `Sink`.

    `default` sinks are used when a model names none; `backlog` says whether rows from before the
    sink was first used are delivered too. `options` are those that code gave, as JSON values and
    without secrets, and `factory(**options)` returns this spec again: `art sync` does so in another
    process. Without `options` it refuses a sink that code made otherwise than its plugin.
    """

    name: str
    create: Callable[[], Sink]
    summary: str
    default: bool = True
    backlog: bool = True
    options: Mapping[str, Any] | None = None
    factory: Callable[..., SinkSpec] | None = None
