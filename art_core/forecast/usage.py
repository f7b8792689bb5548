"""Usage of steps and evaluations, read from the log: dollars by cost, tokens, hours, bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import attrs

from art_core.log.history import MetricsRow
from art_core.log.reader import LoggedRun, receipts_of
from art_core.log.rows import is_paid
from art_core.log.timeline import Timeline
from art_core.metrics.receipt import Receipt
from art_core.metrics.taxonomy import ancestors

REWARDS = ("val/reward", "reward/mean")
TOKENS = {
    "input_tokens": "prompt tokens",
    "cache_read_tokens": "cached prompt tokens",
    "cache_write_tokens": "tokens written to a cache",
    "output_tokens": "sampled tokens",
    "train_tokens": "trained tokens",
}
_COUNTED = {
    "data/step_actor_tokens": "tokens sampled by the model",
    "data/step_trainer_tokens": "tokens trained",
}
_WALL = "time/step_wall_s"
_CLOCK = "hour", "wall clock"
_PAUSE = 20.0
"""A step this many times as long as the median one holds a pause between two attempts."""
_LEARNED = ("reward/", "loss/", "train/")
_EVALUATED = ("val/", "test/")

Key = tuple[str, str]


@attrs.frozen
class Amounts:
    """A quantity of a run: what each trained step and each evaluation used of it, in order.

    `unit` is "usd", "token", "hour" or "byte". `spent` is what the whole run used, with all
    attempts.
    """

    name: str
    unit: str
    of_steps: tuple[float, ...]
    of_evaluations: tuple[float, ...]
    spent: float


@attrs.frozen
class Usage:
    """What a run has used so far.

    `steps` are the trained steps of the current line, `evaluated` those with an evaluation. The
    dollars of steps are at today's prices as far as there are receipts, the dollars `spent` as they
    were booked. `rewards` are the curves of the reward by name. `notes` state what the log lacks.
    """

    run: str
    steps: tuple[int, ...]
    evaluated: tuple[int, ...]
    amounts: tuple[Amounts, ...]
    rewards: Mapping[str, Mapping[int, float]] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()


@attrs.define
class _Table:
    """Values by quantity and step, of training and of evaluations."""

    of_steps: dict[Key, dict[int, float]] = attrs.field(factory=dict)
    of_evaluations: dict[Key, dict[int, float]] = attrs.field(factory=dict)
    evaluated: set[int] = attrs.field(factory=set)

    def add(self, row: MetricsRow, used: Mapping[Key, float]) -> None:
        """Add what a row used, to its step or to the evaluation at its step."""
        table = self.of_steps
        if is_evaluation(row):
            table = self.of_evaluations
            self.evaluated.add(row.step)
        for key, value in used.items():
            values = table.setdefault(key, {})
            values[row.step] = values.get(row.step, 0.0) + value


def read_usage(run: LoggedRun, usd: Callable[[Receipt], float | None]) -> Usage:
    """Read what a run has used; `usd` prices a receipt today, None if it can't.

    Rows that a later attempt replaced are in `spent` only.
    """
    line = run.timeline(lambda key: key in REWARDS or key.startswith("costs/"))
    steps = tuple(sorted(line.trained))
    table, receipts, repriced = _Table(), 0, 0.0
    for row in run.rows(current=True):
        bought = list(receipts_of(row))
        changes = [(usd(receipt) or 0.0) - (receipt.usd or 0.0) for receipt in bought]
        receipts += len(bought)
        repriced += math.fsum(map(abs, changes))
        table.add(row, _used(row, bought, changes))
    _add_hours(table, run, line)
    evaluated = tuple(sorted(table.evaluated))
    spent = _spent(run, line)
    keys = [*dict.fromkeys((*table.of_steps, *table.of_evaluations))]
    amounts = [_amounts(key, table, steps, evaluated, spent) for key in keys]
    amounts = [each for each in amounts if any((*each.of_steps, *each.of_evaluations))]
    notes = []
    if not receipts:
        notes.append("the log has no receipts: dollars are those that were booked, at their prices")
    elif repriced > 1e-9:
        notes.append("prices have changed since: what comes is at today's")
    disk, more = _disk(run.path, steps, evaluated)
    rewards = {key: line.curve(key) for key in REWARDS}
    return Usage(run.name, steps, evaluated, (*amounts, *disk), rewards, (*notes, *more))


def is_evaluation(row: MetricsRow) -> bool:
    """Return whether a row is of an evaluation; rows of ART have no split."""
    if row.split:
        return row.split != "train"
    learned = any(key.startswith(_LEARNED) for key in row.metrics)
    return not learned and any(key.startswith(_EVALUATED) for key in row.metrics)


def _used(row: MetricsRow, bought: Sequence[Receipt], changes: Sequence[float]) -> dict[Key, float]:
    """Return what a row used; `changes` are added to the dollars of its receipts."""
    used = dict(_of_metrics(row))
    for receipt, change in zip(bought, changes, strict=True):
        for path in (receipt.leaf, *ancestors(receipt.leaf), "costs/all"):
            _raise(used, ("usd", path.removeprefix("costs/")), change)
        for key, amount in _of_receipt(receipt):
            _raise(used, key, amount)
    return used


def _of_metrics(row: MetricsRow) -> Iterator[tuple[Key, float]]:
    for key, value in row.metrics.items():
        # counts of an evaluation stand under its split: val/data/step_actor_tokens
        name = _COUNTED.get(key if key.startswith("data/") else key.partition("/")[2])
        if is_paid(key):
            yield ("usd", key.removeprefix("costs/")), value
        elif name is not None:
            yield ("token", name), value
        elif key == _WALL:
            yield _CLOCK, value / 3600


def _of_receipt(receipt: Receipt) -> Iterator[tuple[Key, float]]:
    leaf = receipt.leaf.removeprefix("costs/")
    for count, kind in TOKENS.items():
        if number := getattr(receipt, count):
            yield ("token", f"{leaf}: {kind}"), number
    if receipt.device_seconds:
        yield ("hour", f"{leaf}: {receipt.item}"), receipt.device_seconds / 3600


def _raise(used: dict[Key, float], key: Key, by: float) -> None:
    used[key] = used.get(key, 0.0) + by


def _add_hours(table: _Table, run: LoggedRun, line: Timeline) -> None:
    """Add the hours of steps by the times of their rows where no duration was logged."""
    if table.of_steps.get(_CLOCK):
        return
    rows = [row for row in run.rows(current=True) if row.step in line.trained]
    hours: dict[int, float] = {}
    for before, row in pairwise(rows):
        if row.attempt == before.attempt and row.step > before.step:
            # a clock that was set back makes a gap
            passed = (row.recorded_at - before.recorded_at).total_seconds() / 3600
            hours[row.step] = passed if passed >= 0 else math.nan
    known = [value for value in hours.values() if value > 0]
    limit = _PAUSE * median(known) if known else 0.0
    table.of_steps[_CLOCK] = {step: h if h <= limit else math.nan for step, h in hours.items()}


def _spent(run: LoggedRun, line: Timeline) -> dict[Key, float]:
    """Return what the whole run used, with all attempts: dollars by the log's own sums."""
    spent: dict[Key, float] = {}
    for row in run.rows():
        bought = list(receipts_of(row))
        for key, value in _used(row, bought, [0.0] * len(bought)).items():
            _raise(spent, key, value)
    booked = {k: v for k, v in line.totals.items() if k.startswith("costs/cum/")}
    return spent | {("usd", key.removeprefix("costs/cum/")): usd for key, usd in booked.items()}


def _amounts(
    key: Key,
    table: _Table,
    steps: Sequence[int],
    evaluated: Sequence[int],
    spent: Mapping[Key, float],
) -> Amounts:
    of_steps, of_evaluations = table.of_steps.get(key, {}), table.of_evaluations.get(key, {})
    # A step without hours was not measured; without anything else it used nothing of it.
    missing = math.nan if key == _CLOCK else 0.0
    values = [of_steps.get(step, missing) for step in steps]
    known = math.fsum(value for value in of_steps.values() if value > 0)
    return Amounts(
        name=key[1],
        unit=key[0],
        of_steps=_from_first(values),
        of_evaluations=_from_first([of_evaluations.get(step, 0.0) for step in evaluated]),
        spent=spent.get(key, known),
    )


def _from_first(values: Sequence[float]) -> tuple[float, ...]:
    """Return values from the first that is not 0 on: what a run began later goes on."""
    first = next((place for place, value in enumerate(values) if value > 0), 0)
    return tuple(v if math.isnan(v) else max(0.0, v) for v in values[first:])


def _disk(
    path: Path, steps: Sequence[int], evaluated: Sequence[int]
) -> tuple[list[Amounts], list[str]]:
    """Return the bytes of the log with the trajectories, and of checkpoints, and notes on them."""
    stored = path / "trajectories"
    others = [p for p in _folders(stored) if p.name != "train"] + _folders(path / "evaluations")
    log = _size(path / "history.jsonl") / max(1, len(steps))
    of_steps = [log + _size(stored / "train" / f"{step:04d}.jsonl") for step in steps]
    of_evaluations = [
        float(sum(_size(folder / f"{step:04d}.jsonl") for folder in others)) for step in evaluated
    ]
    spent = math.fsum((*of_steps, *of_evaluations))
    found = [Amounts("log and trajectories", "byte", (*of_steps,), (*of_evaluations,), spent)]
    kept = {
        int(folder.name): float(sum(map(_size, folder.rglob("*"))))
        for folder in _folders(path / "checkpoints")
        if folder.name.isdecimal()
    }
    due = [step for step in steps if kept and step >= min(kept)]
    whole = len(due) > 1 and kept.keys() >= {*due}
    sizes = tuple(kept[step] for step in due) if whole else (0.0, 0.0)
    if kept:
        found.append(Amounts("checkpoints", "byte", sizes, (), math.fsum(kept.values())))
    notes = ["not every step has its checkpoint: as many as now stay, of the same size"]
    return found, notes if kept and not whole else []


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
