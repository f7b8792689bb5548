from __future__ import annotations

from datetime import UTC, datetime, timedelta

import attrs
import pytest

import art_core as art

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@attrs.define
class Log:
    """A log that a test writes to, row by row."""

    path: object
    rows: int = 0

    def add(self, step=None, split="train", attempt=1, receipts=(), nonfinite=None, **metrics):
        self.rows += 1
        row = art.MetricsRow(
            seq=self.rows,
            attempt=attempt,
            step=self.rows if step is None else step,
            split=split,
            recorded_at=WHEN + timedelta(minutes=self.rows),
            metrics={key.replace("__", "/"): float(value) for key, value in metrics.items()},
            receipts=tuple(receipt.to_dict() for receipt in receipts),
            nonfinite=nonfinite or {},
        )
        self.raw(row.to_line())

    def raw(self, line):
        with self.path.open("ab") as file:
            file.write(line)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "demo" / "models" / "m" / "history.jsonl"
    path.parent.mkdir(parents=True)
    path.touch()
    return Log(path)
