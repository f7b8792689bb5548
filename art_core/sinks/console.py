"""A sink that prints: a line a train row with its headline numbers, and a short one for every other
split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from art_core.metrics.row import MetricsRow
from art_core.progress import print_line
from art_core.sinks.protocol import RunInfo

_STANDARD = frozenset({"reward/mean", "reward/std_dev", "reward/exception_rate", "reward/duration"})
_OWN_COLUMNS = 3
_HEADER_EVERY = 20


def _ratio(tokens: str, seconds: str) -> Callable[[Mapping[str, float]], float | None]:
    def value(metrics: Mapping[str, float]) -> float | None:
        time = metrics.get(seconds, 0.0)
        return metrics[tokens] / time if time > 0 and tokens in metrics else None

    return value


def _get(key: str) -> Callable[[Mapping[str, float]], float | None]:
    return lambda metrics: metrics.get(key)


Column = tuple[str, str, Callable[[Mapping[str, float]], float | None]]
_FIRST: tuple[Column, ...] = (
    ("reward", ".3f", _get("reward/mean")),
    ("± std", ".3f", _get("reward/std_dev")),
)
_LAST: tuple[Column, ...] = (
    ("failed", ".0%", _get("reward/exception_rate")),
    ("actor tok/s", ".0f", _ratio("data/step_actor_tokens", "time/step_actor_s")),
    ("trainer tok/s", ".0f", _ratio("data/step_trainer_tokens", "time/step_trainer_s")),
    ("seconds", ".1f", _get("time/step_wall_s")),
    ("$ so far", ".4f", _get("costs/cum/all")),
)


@attrs.define
class ConsoleSink:
    """Prints rows to standard error, beside any progress bar."""

    print_line: Callable[[str], None] | None = None
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
        """Return what to print for a row: the header where it is due, and the row's line."""
        metrics = row.metrics
        if row.split != "train" or "reward/mean" not in metrics:
            return _short(row)
        if not self._columns:
            own = [
                k
                for k in metrics
                if k.startswith("reward/") and k not in _STANDARD and "/group_" not in k
            ]
            names = sorted(own)[:_OWN_COLUMNS]
            self._columns = (
                *_FIRST,
                *((k.partition("/")[2], ".3f", _get(k)) for k in names),
                *_LAST,
            )
        widths = [max(8, len(title)) for title, _, _ in self._columns]
        lines: list[str] = []
        if self._printed % _HEADER_EVERY == 0:
            titles = [
                title.rjust(w) for (title, _, _), w in zip(self._columns, widths, strict=True)
            ]
            lines.append("  ".join(["  step", *titles]))
        cells = [
            _cell(read(metrics), form).rjust(w)
            for (_, form, read), w in zip(self._columns, widths, strict=True)
        ]
        self._printed += 1
        return [*lines, "  ".join([f"{row.step:6d}", *cells])]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(row: MetricsRow) -> list[str]:
    reward = row.metrics.get(f"{row.split}/reward")
    return [] if reward is None else [f"{row.step:6d}  {row.split} reward {reward:.3f}"]
