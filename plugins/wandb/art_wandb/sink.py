"""The sink of a W&B run: rows are acknowledged when wandb's service has them, and sent again if the
service lost them.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import wandb

from art_core import LoggedRun, MetricsRow, Plugins, RunInfo, SinkError, TrajectoryGroup, Watch
from art_wandb.plugin import WandbOptions
from art_wandb.session import FLUSH_S, abandon, durable_seq, finish, keep_durable_seq, open_run

STEP = "training_step"
ENVELOPE = ("seq", "attempt", "split")
_JUDGED = ("reward", "val", "test")


@attrs.define
class Axes:
    """Puts each section on the axis `training_step` before its first value is logged."""

    define_metric: Callable[..., Any]
    _defined: set[str] = attrs.field(factory=set, init=False)

    def define_catalogue(self) -> None:
        """Define the axis, all sections of the catalogue, also of plugins, and the best values of
        rewards and evaluations.
        """
        taxonomy = Plugins.discover().taxonomy()
        for name in (STEP, *ENVELOPE):
            self.define_metric(name, hidden=True)
        self.define_sections(taxonomy.sections)
        for key in taxonomy.specs:
            direction = taxonomy.direction(key)
            if direction and key.startswith(_JUDGED) and not key.endswith("*"):
                best = "last,max" if direction == "higher" else "last,min"
                self.define_metric(key, step_metric=STEP, summary=best)

    def define_sections(self, names: Iterable[str]) -> None:
        """Define new sections, or those of keys; a run's own split is a section too."""
        new = {name.partition("/")[0] for name in names} - self._defined
        for section in sorted(new):
            self.define_metric(f"{section}/*", step_metric=STEP)
        self._defined |= new


log = logging.getLogger("art_core")

_EXIT_CODES = {"finished": 0, "running": 0, "out of budget": 0, "interrupted": 255}
# 255 is "killed" at W&B


@attrs.define(eq=False)
class WandbSink:
    """Logs each row with `training_step`, `seq`, `attempt` and `split` beside its metrics.

    wandb's service is another process, which writes to the disk every second. If it dies, the next
    write starts another one and sends the rows again that may not be on the disk, from the run's
    log. Repeats have the same `seq`.
    """

    options: WandbOptions = attrs.field(factory=WandbOptions)
    _info: RunInfo | None = None
    _run: wandb.Run | None = None
    _axes: Axes | None = None
    _announced: bool = False
    _begun: bool = False
    _sent: int = 0
    _furthest: MetricsRow | None = None
    _acknowledged: int = 0
    _durable: int = 0
    _recent: deque[tuple[float, int]] = attrs.field(factory=deque)
    _watch: Watch | None = None

    def open(self, run: RunInfo) -> None:
        """Start or resume the W&B run; raises when W&B can't be reached in `init_timeout_s`."""
        self._info = run
        if self.options.raises_alerts():
            self._watch = Watch(run, tuple(Plugins.discover().checks().values()))
        self._start()

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Log rows and wait until wandb's service has taken them."""
        if self._run is None:
            self._start()
        first, last = rows[0].seq, rows[-1].seq
        if not self._begun:
            self._begin(first)
        self._log([*self._lost(first), *rows], last)
        if self._watch is not None:
            self._watch.add(rows)
            self._alert(self._watch, due=self._watch.is_due)

    def close(self, run: RunInfo) -> None:
        """Finish the W&B run: as failed unless the run finished, or still goes on."""
        if self._run is None:
            self._start()
        if not self._begun and durable_seq(run) is not None:
            self._begin(1)
        # If this process wrote no row, others delivered the log: check whether all of it was kept.
        end = self._acknowledged + 1 if self._acknowledged else sys.maxsize
        rows = [*self._lost(end)] if self._begun else []
        if rows:
            self._log(rows, rows[-1].seq)
        if self._watch is not None:
            self._alert(self._watch, due=True)
        assert self._run is not None
        with self._guarded():
            finish(self._run, exit_code=_EXIT_CODES.get(run.status, 1))
        if self._begun:
            keep_durable_seq(run, self._sent)

    def _alert(self, watch: Watch, *, due: bool) -> None:
        """Raise an alert for each new finding."""
        assert self._run is not None
        if due:
            watch.unsent += watch.new_findings()
            watch.keep()
        while watch.unsent:
            finding = watch.unsent[0]
            with self._guarded():
                self._run.alert(title=finding.heading, text=f"{finding.problem}. {finding.change}")
            del watch.unsent[0]
            watch.keep()

    def _start(self) -> None:
        assert self._info is not None
        with self._guarded():
            self._run = opened = open_run(self._info, self.options)
            self._axes = Axes(opened.define_metric)
            self._axes.define_catalogue()
            # A resumed run of W&B knows its newest row.
            known = opened.summary.get("seq") if opened.resumed else None
            if known is not None:
                self._begun, self._durable = True, int(known)
            self._sent = self._durable
            self._furthest = None
        if not self._announced:
            self._announced = True
            log.warning("W&B: %s", location(opened, self.options))

    def _begin(self, first: int) -> None:
        """Find and store the row up to which earlier processes have written."""
        assert self._info is not None
        known = durable_seq(self._info)
        self._begun = True
        self._sent = self._durable = first - 1 if known is None else known
        keep_durable_seq(self._info, self._durable)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Abandon the run if the block raises; the next call starts it again."""
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
        """Check that wandb's service has the last seq: it answers in order, so it has all rows
        then.
        """
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
        """Yield the rows of the log after those that W&B has and before a seq."""
        assert self._info is not None
        if self._sent + 1 >= before:
            return
        run = LoggedRun(self._info.run_dir, self._info.taxonomy)
        for row in run.rows(after=self._sent) if run.history.exists() else ():
            if self._sent < row.seq < before:
                yield row


def location(run: wandb.Run, options: WandbOptions) -> str:
    """Return the URL or directory of a run."""
    if run.offline:
        return f"offline ({options.reason()}), in {run.settings.sync_dir}"
    return run.url or "disabled"


COLUMNS = ("step", "group", "trajectory", "reward", "metrics", "messages")
_MAX_ROWS = 1_000


def table_rows(run_dir: Path, split: str, step: int) -> list[list[Any]]:
    """Return the stored trajectories of a split and step as rows of a table, 1,000 at most."""
    run = LoggedRun(run_dir)
    groups = run.groups(step, split) if step in run.steps(split) else []
    rows = (
        [step, number, index, *_cells(group, index)]
        for number, group in enumerate(groups)
        for index in range(len(group))
    )
    return list(islice(rows, _MAX_ROWS))


def _cells(group: TrajectoryGroup, index: int) -> tuple[float, str, str]:
    """Return a trajectory's reward, metrics and messages; choices are without their token data."""
    one = group.trajectories[index]
    metrics = json.dumps(one.metrics, ensure_ascii=False)
    return one.total_reward, metrics, json.dumps(one.messages(), ensure_ascii=False)
