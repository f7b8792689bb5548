"""The current line of a run: the value of each metric at each step, and the steps that count.

Reports, the retention of checkpoints and sinks read rows through a `Timeline`, so that they agree.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from art_core.log.history import MetricsRow, is_total
from art_core.log.rows import (
    BUFFER,
    Batch,
    Columns,
    Kind,
    Points,
    RowPlan,
    adds_up,
    attempt_of,
    is_paid,
    read_batches,
    read_rows,
)
from art_core.metrics.taxonomy import Taxonomy

_MAX_PLANS = 256


@attrs.frozen
class Change:
    """The change that a row makes: `values` are {step: {key: value}} at the steps it changed.

    `trains` states that its step was not trained before, or is trained again in its place.
    `begins_at` is the row's step if it is the first row that its attempt trained. If it replaced
    rows of earlier attempts, `line` is the whole line, and `values` are all from `begins_at` on.
    """

    values: Mapping[int, Mapping[str, float]]
    trains: bool = False
    begins_at: int | None = None
    line: Timeline | None = attrs.field(default=None, repr=False)


@attrs.define(eq=False)
class _Stretch:
    """Rows of an attempt: those before its first trained row, or those from there on.

    `begins_at` is the step of that row; None before it.
    """

    attempt: int
    number: int
    begins_at: int | None = None
    first_row: int = 0
    values: dict[str, Points] = attrs.field(factory=dict)
    nonfinite: dict[str, int] = attrs.field(factory=dict)
    times: dict[int, datetime] = attrs.field(factory=dict)
    trained: set[int] = attrs.field(factory=set)
    furthest_trained: int = -1


@attrs.define(eq=False)
class Timeline:
    """The current line of a run, made of its rows in the order of the log.

    - An attempt that trains replaces what earlier attempts logged at the step of its first trained
      row and at later steps. Such a row is on `train` and has a reward or a loss. Costs stay:
      they were paid.
    - Metrics that add up (costs, times and counts of a step) are the sum over the rows of a step.
      Of other metrics the newest row counts.
    - Sums over the run, clocks and average speeds stand at the furthest step, also those of a row
      of an older step.

    Keys are those of today's catalogue. With `keeps`, only the metrics are kept whose key it
    accepts. `totals` has the newest value of each total that is kept; `logged` are the keys of all
    rows; `earlier_step` is the furthest step before the newest attempt.
    """

    taxonomy: Taxonomy
    keeps: Callable[[str], bool] | None = None
    rows: int = 0
    first: MetricsRow | None = None
    last: MetricsRow | None = None
    earlier_step: int = -1
    totals: dict[str, float] = attrs.field(factory=dict)
    logged: set[str] = attrs.field(factory=set)
    _stretches: list[_Stretch] = attrs.field(factory=list)
    _furthest: tuple[_Stretch, int] | None = None
    _kinds: dict[str, Kind] = attrs.field(factory=dict)
    _plans: dict[tuple[bool, tuple[str, ...]], RowPlan] = attrs.field(factory=dict)

    @classmethod
    def of_log(
        cls,
        history: Path,
        taxonomy: Taxonomy,
        keeps: Callable[[str], bool] | None = None,
        *,
        before: float = math.inf,
    ) -> Timeline:
        """Read a log: all of it, or the rows before the one with the seq `before`."""
        line = cls(taxonomy, keeps)
        if before == math.inf:
            with history.open("rb", buffering=BUFFER) as file:
                for batch in read_batches(file):
                    line.add_batch(batch)
            return line
        for row, _ in read_rows(history):
            if isinstance(row.seq, int) and row.seq >= before:
                break
            line.add(row)
        return line

    @classmethod
    def continued(
        cls,
        taxonomy: Taxonomy,
        *,
        attempt: int,
        step: int,
        earlier_step: int,
        has_trained: bool,
        newest: Mapping[str, tuple[int, float]],
    ) -> Timeline:
        """Return a line that continues an earlier part of a log, given the newest value of each key
        with its step. NaN stands for a value that was not finite.

        The line is wrong if later rows change steps before these, or if it `goes_back_to` `step`.
        """
        line = cls(taxonomy, earlier_step=earlier_step)
        stretch = _Stretch(1, attempt, step if has_trained else None, furthest_trained=step)
        stretch.times[step] = datetime.min.replace(tzinfo=UTC)
        for key, (at, value) in newest.items():
            finite = not math.isnan(value)
            stretch.values[key] = Points([at], array("d", [value])) if finite else Points()
            if not finite:
                stretch.nonfinite[key] = at
            elif is_total(key):
                line.totals[key] = value
        line._stretches.append(stretch)
        line._furthest = stretch, step
        return line

    def goes_back_to(self, step: int) -> bool:
        """Return whether an attempt after the first began to train at a step or before it."""
        begins = (later.begins_at for later in self._stretches[1:])
        return any(begin is not None and begin <= step for begin in begins)

    def add(self, row: MetricsRow) -> Mapping[str, float]:
        """Add a row; return its metrics under their canonical names."""
        plan = self._plan(tuple(row.metrics), foreign=not row.seq)
        metrics = dict(zip(plan.names, row.metrics.values(), strict=True))
        self.rows += 1
        self.first = self.first or row
        self.last = row
        stretch = self._stretch_of(row, learned=plan.learns(row))
        stretch.times[row.step] = row.recorded_at
        if plan.trains(row):
            stretch.trained.add(row.step)
            stretch.furthest_trained = max(stretch.furthest_trained, row.step)
        if self._furthest is None or row.step >= self._furthest[1]:
            self._furthest = stretch, row.step
        for key, kind in plan.kinds.items():
            self._add(stretch, row.step, key, metrics[key], kind)
        for name in row.nonfinite if isinstance(row.nonfinite, dict) else ():
            key = self.taxonomy.resolve(name)
            if any(key in known.values for known in self._stretches):
                stretch.nonfinite[key] = row.step
        return metrics

    def add_batch(self, batch: Batch) -> None:
        """Add rows of a log; those that can't be read are passed over with a warning."""
        columns = batch.columns()
        added = self._add_row(batch, 0)
        if columns is not None and added and self.furthest_step < columns.steps[0]:
            self._add_columns(columns)
        else:
            for index in range(1, len(batch.rows) - 1):
                self._add_row(batch, index)
        if len(batch.rows) > 1:
            self._add_row(batch, -1)

    def _add_row(self, batch: Batch, index: int) -> bool:
        row = batch.row(index)
        if row is not None:
            self.add(row)
        return row is not None

    def _add_columns(self, columns: Columns) -> None:
        """Add rows between the first and the last of a batch, at steps after the furthest one."""
        stretch, first = self._stretches[-1], self.last
        assert first is not None
        plan = self._plan(tuple(columns.metrics), foreign=False)
        self.rows += len(columns.steps)
        stretch.times.update(zip(columns.steps, columns.times, strict=True))
        if plan.trains(attrs.evolve(first, step=columns.steps[0])):
            stretch.trained.update(columns.steps)
        for key, values in zip(plan.names, columns.metrics.values(), strict=True):
            if key in plan.kinds:
                points = stretch.values.setdefault(key, Points())
                points.merge(Points(columns.steps, values), sums=plan.kinds[key].sums)

    def _plan(self, keys: tuple[str, ...], *, foreign: bool) -> RowPlan:
        """Return how rows with these keys are added; `foreign` ones were written by ART."""
        plan = self._plans.get((foreign, keys))
        if plan is None:
            names = tuple(self.taxonomy.names(keys, foreign=foreign))
            plan = RowPlan.of(names, {name: self._kind(name) for name in names})
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            self._plans[foreign, keys] = plan
            self.logged.update(names)
        return plan

    def _add(self, stretch: _Stretch, step: int, key: str, value: float, kind: Kind) -> None:
        if kind.total:
            assert self._furthest is not None
            self.totals[key] = value
            stretch, step = self._furthest
        points = stretch.values.get(key)
        if points is None:
            points = stretch.values[key] = Points()
        points.put(step, value, sums=kind.sums)
        if stretch.nonfinite and stretch.nonfinite.get(key, math.inf) <= step:
            del stretch.nonfinite[key]

    def _stretch_of(self, row: MetricsRow, *, learned: bool) -> _Stretch:
        number = attempt_of(row)
        last = self._stretches[-1] if self._stretches else None
        if last is None or last.number != number or (learned and _goes_back(row, last)):
            self.earlier_step = self.furthest_step
            last = self._begin(last.attempt + 1 if last else 1, number)
        if learned and last.begins_at is None:
            if last.times:
                last = self._begin(last.attempt, number)
            last.begins_at = row.step
            if row.step <= self.earlier_step or row.step < self.furthest_step:
                # The step of these totals is replaced; rows of ART may lack some of them.
                for key, value in self.totals.items():
                    last.values[key] = Points([row.step], array("d", [value]))
            self._furthest = last, row.step
        return last

    def _begin(self, attempt: int, number: int) -> _Stretch:
        self._stretches.append(_Stretch(attempt, number, first_row=self.rows))
        return self._stretches[-1]

    def _kind(self, key: str) -> Kind:
        kept = self.keeps is None or self.keeps(key)
        kind = Kind(kept, is_total(key), adds_up(key, self.taxonomy))
        self._kinds[key] = kind
        return kind

    def _with_limits(self, *, own: bool) -> Iterator[tuple[_Stretch, float]]:
        """Yield the stretches, the oldest first, each with the step from which on others replace
        it. With `own`, what an attempt logged before it trained is replaced after that step, too.
        """
        limits: list[tuple[_Stretch, float]] = []
        for stretch in reversed(self._stretches):
            limit = min(
                (
                    later.begins_at + (later.attempt == stretch.attempt)
                    for later, _ in limits
                    if later.begins_at is not None and (own or later.attempt != stretch.attempt)
                ),
                default=math.inf,
            )
            limits.append((stretch, limit))
        return reversed(limits)

    def row_limits(self) -> list[float]:
        """Return for each row the step from which on a later attempt replaces it; inf without."""
        ends = [*(stretch.first_row for stretch in self._stretches[1:]), self.rows + 1]
        limited = zip(self._with_limits(own=False), ends, strict=False)
        return [limit for (s, limit), end in limited for _ in range(s.first_row, end)]

    @property
    def trained(self) -> set[int]:
        """The steps of the line that were trained."""
        limited = self._with_limits(own=True)
        return {step for stretch, limit in limited for step in stretch.trained if step < limit}

    def points(self, key: str) -> tuple[Sequence[int], Sequence[float]]:
        """Return the steps at which a key has a value, rising, and these values."""
        paid, kind = is_paid(key), self._kind(key)
        parts = [
            stretch.values[key].before(math.inf if paid else limit)
            for stretch, limit in self._with_limits(own=kind.total)
            if key in stretch.values
        ]
        if len(parts) == 1:
            return parts[0].steps, parts[0].values
        merged = Points()
        for points in parts:
            merged.merge(points, sums=kind.sums)
        return merged.steps, merged.values

    def curve(self, key: str) -> dict[int, float]:
        """Return {step: value} of a key, by step; empty when the line has none."""
        return dict(zip(*self.points(key), strict=True))

    def curves(self) -> dict[str, dict[int, float]]:
        """Return {step: value} of each key that is kept."""
        return {key: self.curve(key) for key in self.kept_keys()}

    def kept_keys(self) -> list[str]:
        """Return the keys that are kept."""
        return list(dict.fromkeys(key for stretch in self._stretches for key in stretch.values))

    def nonfinite_at(self, key: str) -> int | None:
        """Return the step at which the newest value of a key was not finite; None if it was."""
        found = -1
        if not any(key in stretch.nonfinite for stretch in self._stretches):
            return None
        for stretch, limit in self._with_limits(own=False):
            finite = stretch.values[key].before(limit).steps if key in stretch.values else ()
            if max(finite, default=-1) >= found:
                found = -1
            if stretch.nonfinite.get(key, limit) < limit:
                found = max(found, stretch.nonfinite[key])
        return found if found >= max(self.points(key)[0], default=0) else None

    @property
    def has_trained(self) -> bool:
        """True if the newest attempt has trained."""
        return bool(self._stretches) and self._stretches[-1].begins_at is not None

    @property
    def furthest_step(self) -> int:
        """The furthest step of the line; -1 without rows."""
        return self._furthest[1] if self._furthest else -1

    def values(self, first: float = -math.inf) -> dict[int, dict[str, float]]:
        """Return {step: {key: value}} of the line, from a step on."""
        by_step: dict[int, dict[str, float]] = {}
        for key, curve in self.curves().items():
            for step, value in curve.items():
                if step >= first:
                    by_step.setdefault(step, {})[key] = value
        return dict(sorted(by_step.items()))

    def times(self) -> dict[int, datetime]:
        """Return when the newest row of each step was recorded."""
        return {step: time for stretch in self._stretches for step, time in stretch.times.items()}

    def change(self, row: MetricsRow) -> Change:
        """Add a row, and return what it changed."""
        count = len(self._stretches)
        limits = {id(stretch): limit for stretch, limit in self._with_limits(own=False)}
        known, metrics = self._is_trained(row.step), self.add(row)
        trains = self._is_trained(row.step) and not known
        begins_at = self._stretches[-1].begins_at if len(self._stretches) > count else None
        if begins_at is None:
            return Change(self._changed(row.step, metrics), trains)
        attempt = self._stretches[-1].attempt
        replaced = any(
            begins_at <= step < limits[id(stretch)]
            for stretch in self._stretches[:count]
            if stretch.attempt != attempt
            for step in stretch.times
        )
        if replaced:
            return Change(self.values(begins_at), trains=True, begins_at=begins_at, line=self)
        return Change(self._changed(row.step, metrics), trains, begins_at)

    def _is_trained(self, step: int) -> bool:
        limited = self._with_limits(own=True)
        return any(step in stretch.trained and step < limit for stretch, limit in limited)

    def _changed(self, step: int, metrics: Mapping[str, float]) -> dict[int, dict[str, float]]:
        assert self._furthest is not None
        changed: dict[int, dict[str, float]] = {step: {}}
        for key, value in metrics.items():
            kind = self._kinds[key]
            at = self._furthest[1] if kind.total else step
            changed.setdefault(at, {})[key] = self._sum_at(key, at) if kind.sums else value
        return changed

    def _sum_at(self, key: str, step: int) -> float:
        paid = is_paid(key)
        values = [
            stretch.values[key].at(step)
            for stretch, limit in self._with_limits(own=False)
            if key in stretch.values and (paid or step < limit)
        ]
        return sum(value for value in values if value is not None)


def _goes_back(row: MetricsRow, stretch: _Stretch) -> bool:
    """Return whether a row that ART wrote begins another attempt, since its step is an older one.

    ART does not count attempts.
    """
    return not row.seq and row.step < stretch.furthest_trained
