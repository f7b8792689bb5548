"""A row of metrics, and its form as one line of JSON."""

from __future__ import annotations

import logging
import math
from codecs import BOM_UTF8
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
from orjson import OPT_APPEND_NEWLINE, JSONDecodeError, JSONEncodeError, dumps, loads

from art_core.base.errors import HistoryError

log = logging.getLogger("art_core")

SCHEMA = 1
_INT_LIMIT = 1 << 63
_CLOCKS = frozenset({"time/wall_clock_sec", "time/attempt_sec"})


# A dict class whose fields have an order: frozen ones of these are made in half the time.
@attrs.frozen(slots=False)
class MetricsRow:
    """A step's metrics on one split.

    `seq` counts the run's rows from 1 and is the key to drop repeats by. `attempt` counts the times
    that the run was opened to log. `metrics` are finite floats; `nonfinite` has the other values,
    as text. `scenario_ids` are in no earlier row. `receipts` are the calls and device time behind
    the costs, with their prices.
    """

    seq: int
    attempt: int
    step: int
    split: str
    recorded_at: datetime
    metrics: dict[str, float]
    nonfinite: dict[str, str] = attrs.field(factory=dict)
    scenario_ids: tuple[str, ...] = ()
    receipts: tuple[dict[str, Any], ...] = ()

    def is_behind(self, other: MetricsRow | None) -> bool:
        """Return True if a row logged before belongs to a later step of the same attempt."""
        if other is None or other.seq >= self.seq or other.attempt != self.attempt:
            return False
        return self.step < other.step

    def without_totals(self) -> MetricsRow:
        """Return the row without the sums over the run, its clocks and its average speeds.

        A row that is behind has those of the time when it was logged. A curve over steps would show
        them at an old step.
        """
        of_step = {key: value for key, value in self.metrics.items() if not is_total(key)}
        return attrs.evolve(self, metrics=of_step)

    def to_line(self) -> bytes:
        """Return the row as one line of strict JSON, with all keys on one level as in ART's files.

        Values that JSON can't hold are converted or dropped, with a warning.
        """
        try:
            return _line(self)
        except JSONEncodeError as error:
            log.warning(
                "step %d: a part of the row can't be written as it is (%s): converted, or left out",
                self.step,
                error,
            )
            return _line(
                attrs.evolve(
                    self,
                    split=plain(self.split),
                    metrics=plain(self.metrics),
                    nonfinite=plain(self.nonfinite),
                    scenario_ids=tuple(map(plain, self.scenario_ids)),
                    receipts=tuple(map(plain, self.receipts)),
                )
            )

    @classmethod
    def from_line(cls, line: bytes) -> MetricsRow:
        """Read a row, also one that ART wrote; HistoryError for any other line.

        A byte order mark, which some editors put at a file's start, is skipped.
        """
        try:
            record = loads(line.removeprefix(BOM_UTF8))
        except JSONDecodeError as error:
            raise _not_a_row(line, error) from error
        return cls.from_record(record)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> MetricsRow:
        """Read a row back from a line's JSON object; HistoryError for one that is not a row."""
        try:
            recorded_at = datetime.fromisoformat(record["recorded_at"])
            return cls(
                seq=record.get("seq", 0),
                attempt=record.get("attempt", 0),
                step=int(record["step"] if "step" in record else record["training_step"]),
                split=record.get("split", ""),
                # ART writes local time without a zone.
                recorded_at=recorded_at if recorded_at.tzinfo else recorded_at.astimezone(UTC),
                metrics={
                    k: float(v)
                    for k, v in record.items()
                    if "/" in k and isinstance(v, (int, float))
                },
                nonfinite=record.get("_nonfinite", {}),
                scenario_ids=tuple(record.get("_scenario_ids", ())),
                receipts=tuple(record.get("_receipts", ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise _not_a_row(dumps(record), error) from error


def _not_a_row(line: bytes, error: Exception) -> HistoryError:
    return HistoryError(f"not a row of metrics: {line[:80]!r} ({error})")


def is_total(key: str) -> bool:
    """Return whether a key is about the whole run: a sum, a clock or an average speed."""
    return key in _CLOCKS or key.startswith("throughput/avg_") or "cum" in key.split("/")[1:]


def _line(row: MetricsRow) -> bytes:
    envelope: dict[str, Any] = {
        "schema": SCHEMA,
        "seq": row.seq,
        "attempt": row.attempt,
        "step": row.step,
        "split": row.split,
        "recorded_at": row.recorded_at,
    }
    if row.nonfinite:
        envelope["_nonfinite"] = row.nonfinite
    if row.scenario_ids:
        envelope["_scenario_ids"] = row.scenario_ids
    if row.receipts:
        envelope["_receipts"] = row.receipts
    if not row.metrics:
        return dumps(envelope, option=OPT_APPEND_NEWLINE)
    metrics = dumps(row.metrics, option=OPT_APPEND_NEWLINE)
    return b"%b,%b" % (dumps(envelope)[:-1], metrics[1:])


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: text as UTF-8, numbers as floats or ints of 64 bits.

    Parts that can't be converted are dropped: null in a list, no key in an object.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        parts = {plain(str(key)): plain(item) for key, item in value.items()}
        return {key: item for key, item in parts.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, int) and abs(value) < _INT_LIMIT:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
