from datetime import UTC, datetime

import attrs
import pytest

import art_core as art
from art_core.log.history import HistoryLog


@attrs.define
class Book:
    """A run's log that a test writes to, and the run that it belongs to."""

    log: HistoryLog
    run: art.RunInfo

    @property
    def path(self):
        return self.log.path

    def add(self, count=1, **metrics):
        for _ in range(count):
            seq = self.log.last.seq + 1 if self.log.last else 1
            self.log.append(
                art.MetricsRow(
                    seq=seq,
                    attempt=1,
                    step=seq,
                    split="train",
                    recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
                    metrics=metrics or {"loss/train": 1.0},
                )
            )


@pytest.fixture
def book(tmp_path):
    log = HistoryLog.open(tmp_path / "history.jsonl")
    yield Book(log, art.RunInfo(project="p", name="m", run_dir=tmp_path))
    log.close()
