"""Ninth stop: what a sink is. A class with three methods, and a spec that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from art_core.base.errors import ConfigError
from art_core.log.rundir import checked_name
from art_core.metrics.catalogue import builtin_taxonomy
from art_core.metrics.row import MetricsRow
from art_core.metrics.taxonomy import Taxonomy


@attrs.frozen(kw_only=True)
class RunInfo:
    """Which run the rows belong to. `config` is what the user gave the model; `attempt` counts the
    run's openings. `status` is "running" while rows come; in `Sink.close` it is what the run ended
    as: "finished", "failed", "interrupted", or what `model.close(status=)` gave. `reason` is why it
    failed, where that is known: an exception's type and message, without secrets. `sink` is the
    name of the sink that gets this description. `taxonomy` has the metrics' specs, those of the
    model's own plugins included.
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


class Sink(Protocol):
    """Takes rows, on a thread of its own; what it raises is retried, and no trainer sees it."""

    def open(self, run: RunInfo) -> None:
        """Get ready; called before the first row, and again after a failure of this call."""

    def write(self, rows: list[MetricsRow]) -> None:
        """Take rows, in order. A row may come twice: drop repeats by `row.seq`."""

    def close(self, run: RunInfo) -> None:
        """Finish; called after the last row of this attempt, and again if it raised. `run.status`
        says how the run ended; it is "running" when the run goes on with another sink object.
        """


@attrs.frozen(kw_only=True)
class SinkSpec:
    """A sink offered by a plugin: `create()` imports what is heavy and returns a `Sink`.

    `default` sinks are used when a model names none; `backlog` says whether rows from before the
    sink was first used are delivered too. `options` are those that code gave, as JSON values and
    without secrets, and `factory(**options)` returns this spec again: `art sync` does so in another
    process. Without `options` it refuses a sink that code made otherwise than its plugin. `kind` is
    the name that the plugin gave where `named` gave another.
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
        """Return the same sink under another name: a model can have both, each with a cursor of its
        own. ConfigError for a name that can't be a file's.
        """
        return attrs.evolve(self, name=checked_name("sink", name), kind=self.kind or self.name)


def distinct_sinks(specs: Iterable[SinkSpec]) -> list[SinkSpec]:
    """Return the sinks, one given twice once; ConfigError for two of one name, which would share a
    cursor.
    """
    chosen: dict[str, SinkSpec] = {}
    for spec in specs:
        if chosen.get(spec.name, spec) != spec:
            raise ConfigError(
                f"two sinks are named {spec.name!r}, and a cursor belongs to one name",
                f"Name one of them otherwise: spec.named('{spec.name}-2').",
            )
        chosen[spec.name] = spec
    return list(chosen.values())
