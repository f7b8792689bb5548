"""Seventh stop: one row, the unit that is logged, kept and delivered, and its one-line JSON
form.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from datetime import UTC, datetime
from typing import Any

import attrs
from orjson import OPT_APPEND_NEWLINE, dumps, loads

from art_core.errors import HistoryError

SCHEMA = 1


# A dict class whose fields have an order: frozen ones of these are made in half the time.
@attrs.frozen(slots=False)
class MetricsRow:
    """A step's metrics on one split.

    `seq` counts the run's rows from 1 and is the key to drop repeats by; `attempt` counts the times
    that the run was opened to log; `metrics` are finite floats; `nonfinite` holds the values that
    were not, as text; `scenario_ids` are the ids that this row saw first; `receipts` say what its
    costs were paid for, and at which price.
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

    def to_line(self) -> bytes:
        """Return the row as one line of strict JSON; metric keys stand beside the envelope's, as in
        ART's files.
        """
        envelope: dict[str, Any] = {
            "schema": SCHEMA,
            "seq": self.seq,
            "attempt": self.attempt,
            "step": self.step,
            "split": self.split,
            "recorded_at": self.recorded_at,
        }
        if self.nonfinite:
            envelope["_nonfinite"] = self.nonfinite
        if self.scenario_ids:
            envelope["_scenario_ids"] = self.scenario_ids
        if self.receipts:
            envelope["_receipts"] = self.receipts
        if not self.metrics:
            return dumps(envelope, option=OPT_APPEND_NEWLINE)
        metrics = dumps(self.metrics, option=OPT_APPEND_NEWLINE)
        return b"%b,%b" % (dumps(envelope)[:-1], metrics[1:])

    @classmethod
    def from_line(cls, line: bytes) -> MetricsRow:
        """Read a row back, also one that ART wrote; HistoryError for a line that is not one.

        A byte order mark, which some editors put at a file's start, is passed over.
        """
        try:
            record: dict[str, Any] = loads(line.removeprefix(BOM_UTF8))
            recorded_at = datetime.fromisoformat(record["recorded_at"])
            return cls(
                seq=record.get("seq", 0),
                attempt=record.get("attempt", 0),
                step=int(record["step"] if "step" in record else record["training_step"]),
                split=record.get("split", ""),
                recorded_at=recorded_at if recorded_at.tzinfo else recorded_at.replace(tzinfo=UTC),
                metrics={
                    k: float(v)
                    for k, v in record.items()
                    if "/" in k and isinstance(v, (int, float))
                },
                nonfinite=record.get("_nonfinite", {}),
                scenario_ids=tuple(record.get("_scenario_ids", ())),
                receipts=tuple(record.get("_receipts", ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HistoryError(f"not a row of metrics: {line[:80]!r} ({error})") from error
