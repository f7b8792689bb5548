"""The contract of a sink: a class with three methods, and a spec that names it; and the current
line of a run, which sinks of dashboards need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import checked_name
from art_core.log.history import MetricsRow
from art_core.log.rows import adds_up
from art_core.log.rundir import history_file
from art_core.log.timeline import Change, Timeline
from art_core.metrics.taxonomy import Taxonomy, builtin_taxonomy


@attrs.define(eq=False)
class StopRequest:
    """How a sink ends the training before its next step: who asks for it, and why."""

    by: str | None = None
    reason: str = ""

    def request(self, by: str, reason: str) -> None:
        """Ask for the end; the first request counts."""
        if self.by is None:
            self.by, self.reason = by, reason


@attrs.frozen(kw_only=True)
class RunInfo:
    """The run that the rows belong to.

    `config` is what the user gave the model; `attempt` counts the run's openings. `status` is
    "running" while rows come; in `Sink.close` it is the run's end: "finished", "failed",
    "interrupted", "out of budget", or what `model.close(status=)` gave. `reason` is the exception
    because of which the run failed, if known: type and message, without secrets. `sink` is the name
    of the sink that gets this description. `taxonomy` has the specs of all metrics, also of the
    model's plugins. A sink ends the training before its next step by `run.stop.request("my sink",
    "why")`.
    """

    project: str
    name: str
    run_dir: Path
    base_model: str | None = None
    attempt: int = 1
    status: str = "running"
    reason: str | None = None
    config: dict[str, Any] = attrs.field(factory=dict)
    sink: str = ""
    taxonomy: Taxonomy = attrs.field(factory=builtin_taxonomy, eq=False, repr=False)
    stop: StopRequest = attrs.field(factory=StopRequest, eq=False, repr=False)


class Sink(Protocol):
    """Takes rows, on its own thread. If it raises, the call is repeated; the trainer goes on."""

    def open(self, run: RunInfo) -> None:
        """Get ready; called before the first row, and again after a failure of this call."""

    def write(self, rows: list[MetricsRow]) -> None:
        """Take rows, in order. A row may come twice: drop repeats by `row.seq`."""

    def close(self, run: RunInfo) -> None:
        """Finish; called after the last row of this attempt, and again if it raised. `run.status`
        is the end of the run, or "running" if the run goes on with another sink object.
        """


@attrs.frozen(kw_only=True)
class SinkSpec:
    """A sink offered by a plugin: `create()` imports what is heavy and returns a `Sink`.

    `default` sinks are used if a model names none. With `backlog`, rows from before the sink was
    first used are delivered too. `options` are those that code gave, as JSON values and without
    secrets, and `factory(**options)` returns this spec again: `art sync` does so in another
    process. Without `options` it refuses a sink that code made in another way than its plugin.
    `kind` is the name that the plugin gave if `named` gave another one.
    """

    name: str
    create: Callable[[], Sink]
    summary: str
    default: bool = True
    backlog: bool = True
    options: Mapping[str, Any] | None = None
    factory: Callable[..., SinkSpec] | None = None
    kind: str = ""

    def named(self, name: str) -> SinkSpec:
        """Return the same sink under another name: a model can have both, each with its own cursor.
        ConfigError for a name that cannot be the name of a file.
        """
        return attrs.evolve(self, name=checked_name("sink", name), kind=self.kind or self.name)


def distinct_sinks(specs: Iterable[SinkSpec]) -> list[SinkSpec]:
    """Return the sinks without repeats; ConfigError for two of one name, which share a cursor."""
    chosen: dict[str, SinkSpec] = {}
    for spec in specs:
        if chosen.get(spec.name, spec) != spec:
            raise ConfigError(
                f"two sinks are named {spec.name!r}, and a cursor belongs to one name",
                f"Name one of them otherwise: spec.named('{spec.name}-2').",
            )
        chosen[spec.name] = spec
    return list(chosen.values())


_REMEMBERED = 1_000


@attrs.define(eq=False)
class CurrentLine:
    """The change of each row on the current line of a run. A repeated row has the same change.

    It begins with the rows of the run's log before the first row, and keeps only the metrics that
    add up.
    """

    run: RunInfo
    _timeline: Timeline | None = None
    _newest_seq: int = 0
    _changes: dict[int, Change] = attrs.field(factory=dict)

    @property
    def trained(self) -> set[int]:
        """The trained steps of the line, up to the newest row."""
        return self._timeline.trained if self._timeline else set()

    def change(self, row: MetricsRow) -> Change:
        """Return the change of a row: the values to show, by step."""
        if row.seq and row.seq <= self._newest_seq:
            return self._changes.get(row.seq) or Change({})
        timeline = self._timeline
        if timeline is None:
            timeline = self._timeline = self._before(row, sums=True)
        found = timeline.change(row)
        if found.line is not None:
            found = self._before(row, sums=False).change(row)
        if row.seq:
            self._newest_seq = row.seq
            self._changes[row.seq] = found
            if len(self._changes) > _REMEMBERED:
                del self._changes[next(iter(self._changes))]
        return found

    def _before(self, row: MetricsRow, *, sums: bool) -> Timeline:
        taxonomy, history = self.run.taxonomy, history_file(self.run.run_dir)
        keeps = (lambda key: adds_up(key, taxonomy)) if sums else None
        if not row.seq or not history.exists():
            return Timeline(taxonomy, keeps)
        return Timeline.of_log(history, taxonomy, keeps, before=row.seq)
