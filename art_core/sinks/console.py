"""The console sink prints one line with the main numbers per train row, and a short line for other
splits.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence

import attrs

from art_core.base.progress import print_line
from art_core.log.history import MetricsRow
from art_core.sinks.protocol import RunInfo, Sink, SinkSpec

_STANDARD = frozenset({"reward/mean", "reward/std_dev", "reward/exception_rate", "reward/duration"})
_HEADER_EVERY = 20
_MIN_WIDTH, _MAX_WIDTH = 8, 18
_STEP_WIDTH = 6
_WIDTH_OF_A_LOG = 120


def console_sink(columns: Sequence[str] | None = None) -> SinkSpec:
    """Return the console sink for a model's `sinks`; `columns` are the metrics to show, in order.

    By default these are the reward, the metrics of your own trajectories, and speed and cost, as
    many as fit the terminal.
    """

    def create() -> Sink:
        return ConsoleSink(chosen=None if columns is None else tuple(columns))

    return SinkSpec(
        name="console", create=create, summary="one line per step on standard error", backlog=False
    )


Value = Callable[[Mapping[str, float]], float | None]


@attrs.frozen
class Column:
    """A column of the table: its title, the format of a number, and the function for it."""

    title: str
    form: str
    value: Value

    @property
    def width(self) -> int:
        """Characters of a cell."""
        return max(_MIN_WIDTH, len(self.title))

    def cell(self, metrics: Mapping[str, float]) -> str:
        """Return the row's number, "-" if it has none."""
        value = self.value(metrics)
        return ("-" if value is None else format(value, self.form)).rjust(self.width)


def _ratio(part: str, seconds: str) -> Value:
    def value(metrics: Mapping[str, float]) -> float | None:
        time = metrics.get(seconds, 0.0)
        return metrics[part] / time if time > 0 and part in metrics else None

    return value


def _get(key: str) -> Value:
    return lambda metrics: metrics.get(key)


def _own(key: str, form: str = ".3f") -> Column:
    title = key.removeprefix("reward/")
    return Column(
        title if len(title) <= _MAX_WIDTH else f"{title[: _MAX_WIDTH - 1]}…", form, _get(key)
    )


_FIRST = (
    Column("reward", ".3f", _get("reward/mean")),
    Column("± std", ".3f", _get("reward/std_dev")),
)
_OF_A_PIPELINE = (
    Column("age", ".1f", _get("offpolicy/steps_mean")),
    Column("stale", ".0f", _get("pipeline/step_num_groups_stale")),
    Column("trainer idle", ".0%", _ratio("throughput/step_trainer_idle_s", "time/step_wall_s")),
    Column("actor idle", ".0%", _ratio("throughput/step_actor_idle_s", "time/step_wall_s")),
)
_LAST = (
    Column("failed", ".0%", _get("reward/exception_rate")),
    Column("$ so far", ".4f", _get("costs/cum/all")),
    Column("seconds", ".1f", _get("time/step_wall_s")),
    Column("actor tok/s", ".0f", _ratio("data/step_actor_tokens", "time/step_actor_s")),
    Column("trainer tok/s", ".0f", _ratio("data/step_trainer_tokens", "time/step_trainer_s")),
)


@attrs.define
class ConsoleSink:
    """Prints rows to standard error, beside any progress bar. `chosen` are the metrics to show."""

    print_line: Callable[[str], None] | None = None
    chosen: tuple[str, ...] | None = None
    _columns: tuple[Column, ...] = ()
    _printed: int = 0

    def open(self, run: RunInfo) -> None:
        """Nothing to prepare."""

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Print each row."""
        for row in rows:
            for line in self.lines(row):
                (self.print_line or print_line)(line)

    def close(self, run: RunInfo) -> None:
        """Nothing to finish."""

    def lines(self, row: MetricsRow) -> list[str]:
        """Return the lines to print for a row: the header if it is due, and the row."""
        metrics = row.metrics
        if row.split != "train" or not metrics.keys() & {"reward/mean", *(self.chosen or ())}:
            return _short(row)
        lines: list[str] = []
        if self._printed % _HEADER_EVERY == 0:
            self._columns = _fit(self._wanted(metrics), _width())
            titles = (column.title.rjust(column.width) for column in self._columns)
            lines.append("  ".join(["  step", *titles]))
        cells = (column.cell(metrics) for column in self._columns)
        self._printed += 1
        return [*lines, "  ".join([f"{row.step:{_STEP_WIDTH}d}", *cells])]

    def _wanted(self, metrics: Mapping[str, float]) -> tuple[Column, ...]:
        if self.chosen is not None:
            return tuple(_own(key, ".4g") for key in self.chosen)
        own = [key for key in metrics if key.startswith("reward/") and key not in _STANDARD]
        own = [key for key in own if not key.startswith("reward/part_std_dev/")]
        own.sort(key=lambda key: key.startswith("reward/group_"))
        piped = _OF_A_PIPELINE if _OF_A_PIPELINE[1].value(metrics) is not None else ()
        return (*_FIRST, *map(_own, own), *piped, *_LAST)


def _fit(columns: Sequence[Column], width: int) -> tuple[Column, ...]:
    """Return the first columns that fit a width; one that is too wide is left out."""
    fitting: list[Column] = []
    left = width - _STEP_WIDTH
    for column in columns:
        if column.width + 2 <= left:
            fitting.append(column)
            left -= column.width + 2
    return tuple(fitting)


def _width() -> int:
    """Return the characters of a line: the terminal's, or `COLUMNS`; 120 in a log."""
    try:
        terminal = os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        terminal = 0
    return shutil.get_terminal_size((terminal or _WIDTH_OF_A_LOG, 24)).columns


def _short(row: MetricsRow) -> list[str]:
    reward = row.metrics.get(f"{row.split}/reward")
    return [] if reward is None else [f"{row.step:6d}  {row.split} reward {reward:.3f}"]
