"""The leaderboard: one row per run, columns for the newest and the best value of every key."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.log.reader import LoggedRun, find_runs
from art_core.log.summary import Summary, read_summary
from art_core.metrics.taxonomy import Taxonomy

REWARD, COST = "reward/mean", "costs/cum/all"
PER_DOLLAR = "reward_per_dollar"
BEST, BEST_STEP = ".best", ".best_step"
_PARTS = (BEST, BEST_STEP)


@attrs.frozen(kw_only=True)
class Place:
    """A run on the board, with its `values` by column.

    A column is a key, for its newest value, or a key with `.best` or `.best_step`. Further columns
    are `step`, `rows`, `attempts` and `reward_per_dollar`.
    """

    run: LoggedRun
    status: str
    summary: Summary = attrs.field(repr=False)
    values: Mapping[str, float] = attrs.field(repr=False)

    @property
    def facts(self) -> dict[str, str]:
        """The columns that are not numbers: names, directory, status and times."""
        return {
            "run": self.run.name,
            "project": self.run.path.parent.parent.name,
            "model": self.run.path.name,
            "status": self.status,
            "started": self.summary.started,
            "ended": self.summary.ended,
            "path": str(self.run.path),
        }


def runs_in(directories: Iterable[Path], taxonomy: Taxonomy) -> list[LoggedRun]:
    """Return the runs below directories, readable or not. Raises ConfigError for a directory that
    does not exist.
    """
    directories = list(directories)
    missing = [str(directory) for directory in directories if not directory.is_dir()]
    if missing:
        raise ConfigError(f"no directory {', '.join(missing)}", "Give a directory of runs.")
    return [run for directory in directories for run in find_runs(directory, taxonomy)]


def read_place(run: LoggedRun, status: str) -> Place:
    """Return a run's place by its summary, so that only the rows that are new are read."""
    return place(run, status, read_summary(run.history, run.taxonomy))


def place(run: LoggedRun, status: str, summary: Summary) -> Place:
    """Return a run's place."""
    values: dict[str, float] = {"step": summary.highest_step} if summary.rows else {}
    values |= {"rows": summary.rows, "attempts": max(summary.attempt, 1)}
    for key, entry in summary.metrics.items():
        values[key] = entry.last
        if entry.best is not None and entry.best_step is not None:
            values[key + BEST], values[key + BEST_STEP] = entry.best, entry.best_step
    if REWARD in values and values.get(COST, 0.0) > 0:
        values[PER_DOLLAR] = values[REWARD] / values[COST]
    return Place(run=run, status=status, summary=summary, values=values)


def _parted(name: str) -> tuple[str, str]:
    """Return a column's key and its ending: `.best`, `.best_step`, or none for the newest value."""
    key, dot, part = name.rpartition(".")
    return (key, dot + part) if dot + part in _PARTS else (name, "")


def column(name: str, places: Iterable[Place], taxonomy: Taxonomy) -> str:
    """Return the column of a name, which may have a former name of its key.

    Raises ConfigError when no run has it.
    """
    key, end = _parted(name)
    known = {known for place in places for known in place.values}
    found = taxonomy.resolve(key) + end
    if found in known or not known:
        return found
    if (average := taxonomy.former_average(key) + end) in known:
        return average
    if end and taxonomy.resolve(key) in known:
        raise ConfigError(
            f"no column {name!r}: {key} has no best value",
            f"Use {key}; sums over the run and clocks have no best.",
        )
    keys = [k for k in known if not k.endswith(_PARTS)]
    raise ConfigError(
        unknown("column", name, keys, known_as="the runs have"),
        f"A key may end in {BEST} or {BEST_STEP}.",
    )


def best_first(places: Iterable[Place], name: str, taxonomy: Taxonomy) -> list[Place]:
    """Sort by a column, the better value first; missing and NaN come last, ties stay in order."""
    lower = taxonomy.direction(name.removesuffix(BEST)) == "lower"

    def rank(place: Place) -> tuple[bool, float]:
        value = place.values.get(name, math.nan)
        return math.isnan(value), 0.0 if math.isnan(value) else value if lower else -value

    return sorted(places, key=rank)


def columns(places: Iterable[Place]) -> list[str]:
    """Return the union of all columns: the facts of a run first, then keys by name."""
    first = ["step", "rows", "attempts", PER_DOLLAR]
    union = {name for place in places for name in place.values}
    return [*(n for n in first if n in union), *sorted(union.difference(first))]


def wide(places: Sequence[Place]) -> Iterator[str]:
    """Yield CSV lines: one per run, with every column, at full precision; blank where missing."""
    names = columns(places)
    facts = list(places[0].facts) if places else []
    yield _csv([*facts, *names])
    for one in places:
        yield _csv([*one.facts.values(), *(one.values.get(name, "") for name in names)])


def long(places: Sequence[Place]) -> Iterator[str]:
    """Yield CSV lines: one per run and key, with its first, newest and best value."""
    yield _csv(["run", "project", "model", "status", "key", "first", "last", "best", "best_step"])
    for one in places:
        who = [one.facts[name] for name in ("run", "project", "model", "status")]
        for key, e in sorted(one.summary.metrics.items()):
            best = ["" if value is None else value for value in (e.best, e.best_step)]
            yield _csv([*who, key, e.first, e.last, *best])


def matrix(places: Iterable[Place], name: str, taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """Return {model: {project: value}} of a column. The better one of two runs with the same name
    counts.
    """
    cells: dict[str, dict[str, float]] = {}
    for one in reversed(best_first(places, name, taxonomy)):
        row = cells.setdefault(one.facts["model"], {})
        if name in one.values:
            row[one.facts["project"]] = one.values[name]
    return dict(sorted(cells.items()))


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
