"""Rows to a W&B run, acknowledged when wandb's service has them, sent again when it lost them."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import wandb

from art_core import HistoryError, MetricsRow, RunInfo, SinkError
from art_wandb.axes import STEP, Axes
from art_wandb.identity import durable_seq, keep_durable_seq
from art_wandb.options import Options
from art_wandb.session import FLUSH_S, abandon, finish, open_run
from art_wandb.table import COLUMNS, table_rows

log = logging.getLogger("art_core")

_EXIT_CODES = {"finished": 0, "running": 0, "interrupted": 255}  # 255 is "killed" at W&B


@attrs.define(eq=False)
class WandbSink:
    """Logs each row with `training_step`, `seq`, `attempt` and `split` beside its metrics.

    wandb's service is a process of its own, which writes to the disk every second. When it dies,
    alone or with this process, the next write starts another one and sends again, from the run's
    log, what may not have reached the disk. `seq` tells repeats.
    """

    options: Options = attrs.field(factory=Options)
    _info: RunInfo | None = None
    _run: wandb.Run | None = None
    _axes: Axes | None = None
    _told: bool = False
    _begun: bool = False
    _sent: int = 0
    _furthest: MetricsRow | None = None
    _acknowledged: int = 0
    _durable: int = 0
    _recent: deque[tuple[float, int]] = attrs.field(factory=deque)

    def open(self, run: RunInfo) -> None:
        """Start or resume the W&B run; raises when W&B can't be reached in `init_timeout_s`."""
        self._info = run
        self._start()

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Log rows and wait until wandb's service has taken them."""
        if self._run is None:
            self._start()
        first, last = rows[0].seq, rows[-1].seq
        if not self._begun:
            self._begin(first)
        self._log([*self._lost(first), *rows], last)

    def close(self, run: RunInfo) -> None:
        """Finish the W&B run: as failed unless the run finished, or still goes on."""
        if self._run is None:
            self._start()
        if not self._begun and durable_seq(run) is not None:
            self._begin(1)
        # Without a row of this process, all of the log was delivered by others: was all of it kept?
        end = self._acknowledged + 1 if self._acknowledged else sys.maxsize
        rows = [*self._lost(end)] if self._begun else []
        if rows:
            self._log(rows, rows[-1].seq)
        assert self._run is not None
        with self._guarded():
            finish(self._run, exit_code=_EXIT_CODES.get(run.status, 1))
        if self._begun:
            keep_durable_seq(run, self._sent)

    def _start(self) -> None:
        assert self._info is not None
        with self._guarded():
            self._run = opened = open_run(self._info, self.options)
            self._axes = Axes(opened.define_metric)
            self._axes.define_catalogue()
            # W&B itself knows best how far it has come, where it can be asked.
            known = opened.summary.get("seq") if opened.resumed else None
            if known is not None:
                self._begun, self._durable = True, int(known)
            self._sent = self._durable
            self._furthest = None
        if not self._told:
            self._told = True
            log.warning("W&B: %s", told(opened, self.options))

    def _begin(self, first: int) -> None:
        """Find out how far wandb has come before this process, and note where it began."""
        assert self._info is not None
        known = durable_seq(self._info)
        self._begun = True
        self._sent = self._durable = first - 1 if known is None else known
        keep_durable_seq(self._info, self._durable)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Give up a run that failed; the next call starts it again."""
        try:
            yield
        except Exception as error:
            run, self._run = self._run, None
            abandon(run, error)
            raise

    def _log(self, rows: Sequence[MetricsRow], last: int) -> None:
        assert self._run is not None
        with self._guarded():
            for row in rows:
                if row.seq > self._sent or not row.seq:
                    self._run.log(self._record(row))
            self._confirm(last)

    def _record(self, row: MetricsRow) -> Mapping[str, Any]:
        assert self._axes is not None and self._info is not None
        behind = row.is_behind(self._furthest)
        self._furthest = self._furthest if behind else row
        metrics = row.without_totals().metrics if behind else row.metrics
        self._axes.define_sections(row.metrics)
        record: dict[str, Any] = {
            STEP: row.step,
            "seq": row.seq,
            "attempt": row.attempt,
            "split": row.split,
            "_timestamp": row.recorded_at.timestamp(),
            **metrics,
        }
        if self.options.logs_trajectories():
            data = table_rows(self._info.run_dir, row.split, row.step)
            if data:
                self._axes.define_sections(("trajectories",))
                table = wandb.Table(columns=list(COLUMNS), data=data)
                record[f"trajectories/{row.split}"] = table
        return record

    def _confirm(self, seq: int) -> None:
        """Ask wandb's service for the last seq: it answers in order, so then it has all of them."""
        assert self._run is not None and self._info is not None
        has = self._run.summary.get("seq") or 0
        if has < seq and not self._run.disabled:
            raise SinkError(f"wandb's service has the rows up to {has}, not up to {seq}")
        self._sent = self._acknowledged = max(self._sent, seq)
        now = time.monotonic()
        self._recent.append((now, seq))
        # A row is on the disk once wandb has flushed its file after it.
        before = self._durable
        while self._recent[0][0] < now - 2 * FLUSH_S:
            self._durable = self._recent.popleft()[1]
        if self._durable > before:
            keep_durable_seq(self._info, self._durable)

    def _lost(self, before: int) -> Iterator[MetricsRow]:
        """Yield the rows of the log after what W&B is known to have and before a seq."""
        assert self._info is not None
        if self._sent + 1 >= before:
            return
        history = self._info.run_dir / "history.jsonl"
        for line in history.read_bytes().splitlines() if history.exists() else ():
            try:
                row = MetricsRow.from_line(line)
            except HistoryError:
                continue
            if self._sent < row.seq < before:
                yield row


def told(run: wandb.Run, options: Options) -> str:
    """Return where a run can be seen."""
    if run.offline:
        return f"offline ({options.reason()}), in {run.settings.sync_dir}"
    return run.url or "disabled"
