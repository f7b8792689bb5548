"""The curves of a run as rules read them: columns of equal length, one value per trained step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median

import attrs

from art_core.log.history import MetricsRow
from art_core.log.reader import receipts_of
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import Taxonomy
from art_core.prices.tables import day_of


@attrs.frozen
class EvaluatedStep:
    """An evaluation on val: its mean reward, and the standard error if it was logged, else NaN."""

    step: int
    reward: float
    std_err: float


@attrs.frozen
class Purchase:
    """What a step bought at a dated price: `age_days` is how old the price was on that day."""

    step: int
    item: str
    usd: float
    age_days: int


@attrs.frozen(eq=False)
class RunCurves:
    """The current line of a run, step by step.

    `steps` are the trained steps, rising. `columns` has the values of each metric at these steps,
    NaN where it was not logged. `evaluations` are those on val. `usd` has the costs of each step in
    US dollars, of all splits. `purchases` are those at prices that have a date.
    """

    steps: tuple[int, ...]
    columns: Mapping[str, Sequence[float]]
    evaluations: tuple[EvaluatedStep, ...] = ()
    usd: Mapping[int, float] = attrs.field(factory=dict)
    purchases: Sequence[Purchase] = ()

    @classmethod
    def of_rows(cls, rows: Iterable[MetricsRow], taxonomy: Taxonomy) -> RunCurves:
        """Return the curves of a log."""
        log = CurveLog(Timeline(taxonomy))
        for row in rows:
            log.add(row)
        return log.curves()

    @classmethod
    def of_line(cls, line: Timeline, purchases: Sequence[Purchase] = ()) -> RunCurves:
        """Return the curves of a line, such as `LoggedRun.timeline()`."""
        steps = tuple(sorted(line.trained))
        curves = line.curves()
        columns = {
            key: tuple(curve.get(step, math.nan) for step in steps) for key, curve in curves.items()
        }
        errors = curves.get("val/reward_std_err", {})
        evaluations = tuple(
            EvaluatedStep(step, reward, errors.get(step, math.nan))
            for step, reward in curves.get("val/reward", {}).items()
        )
        return cls(steps, columns, evaluations, curves.get("costs/all", {}), tuple(purchases))

    def column(self, key: str) -> Sequence[float]:
        """Return the values of a metric at `steps`; NaN where there is none."""
        return self.columns.get(key) or (math.nan,) * len(self.steps)

    def ratio(self, part: str, whole: str) -> tuple[float, ...]:
        """Return one metric divided by another; NaN where that is 0."""
        pairs = zip(self.column(part), self.column(whole), strict=True)
        return tuple(a / b if b else math.nan for a, b in pairs)

    def spent(self, first: int, last: int | None = None) -> float | None:
        """Return the US dollars from a step on, up to `last`; None for a run without costs."""
        end = math.inf if last is None else last
        if not self.usd:
            return None
        return math.fsum(usd for step, usd in self.usd.items() if first <= step <= end)


@attrs.define(eq=False)
class CurveLog:
    """A log that is read row by row; `curves()` are those of the rows so far."""

    line: Timeline
    purchases: list[Purchase] = attrs.field(factory=list)

    def add(self, row: MetricsRow) -> None:
        """Add the next row."""
        self.line.add(row)
        self.purchases += purchases_of(row)

    def curves(self) -> RunCurves:
        """Return the curves; later rows do not change them."""
        return RunCurves.of_line(self.line, self.purchases)


def purchases_of(row: MetricsRow) -> Iterator[Purchase]:
    """Yield what a row bought at dated prices."""
    for receipt in receipts_of(row):
        try:
            day = day_of(receipt.rates["as_of"])
        except (KeyError, TypeError, ValueError):
            continue
        age = (row.recorded_at.date() - day).days
        yield Purchase(row.step, receipt.item, receipt.usd or 0.0, age)


def finite(values: Sequence[float]) -> list[float]:
    """Return the values that are finite."""
    return [value for value in values if math.isfinite(value)]


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Return the median of the last `width` values at each place.

    It is NaN where fewer than half of them are there.
    """
    made = []
    for end in range(1, len(values) + 1):
        known = finite(values[max(0, end - width) : end])
        made.append(median(known) if 2 * len(known) >= width else math.nan)
    return made


def last_stretch(flags: Sequence[bool], least: int) -> tuple[int, int] | None:
    """Return the first and the last place of the last run of at least `least` True values."""
    found, start = None, 0
    for place, flag in enumerate([*flags, False]):
        if not flag:
            if place - start >= least:
                found = start, place - 1
            start = place + 1
    return found


@attrs.frozen
class MeanChange:
    """The change of a mean from earlier values to later ones, with its standard error."""

    gain: float
    error: float


def change_of(before: Sequence[float], after: Sequence[float]) -> MeanChange | None:
    """Return how far the mean moved; None if either side has fewer than three finite values."""
    sides = [finite(before), finite(after)]
    if min(map(len, sides)) < 3:
        return None
    means = [fmean(side) for side in sides]
    variances = [
        math.fsum((value - mean) ** 2 for value in side) / (len(side) - 1) / len(side)
        for side, mean in zip(sides, means, strict=True)
    ]
    return MeanChange(means[1] - means[0], math.sqrt(math.fsum(variances)))


def windows(length: int, width: int, apart: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield each place with two windows: the last `width` values, and those `apart` before."""
    for end in range(width + apart, length + 1):
        yield end - 1, slice(end - width - apart, end - apart), slice(end - width, end)
