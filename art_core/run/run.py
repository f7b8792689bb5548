"""An open run: its log, its next row, and the sinks that follow the log."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs

from art_core.base.errors import HistoryError, reason_of
from art_core.base.files import sweep_leftovers
from art_core.base.numbers import checked_step
from art_core.costs.builder import MetricsBuilder, PriceBook
from art_core.costs.ledger import NOTHING, Drained, Ledger
from art_core.costs.pending import open_builders, settle_rest, withdraw_default
from art_core.data.trajectory import TrajectoryGroup
from art_core.hooks.host import Plugins
from art_core.log.history import HistoryLog, MetricsRow, file_identity
from art_core.log.rows import last_trained_step, logged_state, scenario_ids_of
from art_core.log.rundir import describe_model, history_file, write_status
from art_core.log.summary import SummaryWriter
from art_core.metrics.rollup import UNIQUE_SCENARIOS, Draft, RunningTotals, totals_of
from art_core.metrics.signal import with_signal
from art_core.metrics.summarize import (
    NO_GROUPS,
    Dedup,
    GroupsOfRow,
    count,
    count_trained,
    scenario_ids,
    summarize,
)
from art_core.metrics.taxonomy import Taxonomy
from art_core.rl.config import TrainConfig
from art_core.run import exits
from art_core.sinks.delivery import Delivery, DeliveryReport, Follower
from art_core.sinks.protocol import RunInfo, SinkSpec
from art_core.sinks.sync import keep_options

log = logging.getLogger("art_core")

CLOSE_SECONDS = exits.CLOSE_SECONDS
GRADIENT_STEPS = "data/cum/num_gradient_steps"


@attrs.frozen(eq=False)
class Registered:
    """A backend at which the run's model is registered; the model made it if `owned`."""

    backend: Any
    owned: bool


@attrs.define(eq=False, repr=False)
class Run:
    """An open run. `record` makes a row of given metrics and of what waits, appends it to the log,
    and wakes the sinks.

    Another object of this process that opens the run takes it over: it is the `heir` then, and the
    new run has `inherited` the backend. `owner` describes the object that holds this run.
    """

    info: RunInfo
    taxonomy: Taxonomy
    plugins: Plugins
    ledger: Ledger
    prices: PriceBook
    history: HistoryLog
    delivery: Delivery
    totals: RunningTotals
    dedup: Dedup
    summary: SummaryWriter
    _derives: bool
    _earlier_clock: float
    _started: float = attrs.field(factory=time.monotonic)
    _last_train_row: float = attrs.field(factory=time.monotonic)
    _eval_seconds: float = 0.0
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)
    _closed: bool = False
    owner: str = "another object"
    heir: Run | None = None
    backend: Registered | None = None
    inherited: Registered | None = None
    log_identity: tuple[int, int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.log_identity = self.history.identity

    @classmethod
    def open(
        cls,
        info: RunInfo,
        sinks: Sequence[SinkSpec],
        plugins: Plugins,
        ledger: Ledger,
        prices: PriceBook,
        owner: str = "another object",
    ) -> Run:
        """Open a run's directory, at its last row if it has one, and start its sinks.

        A run that is open in this process is taken over from the object that holds it. Raises
        HistoryError when another process has the run, or the directory can't be written;
        ConfigError when `info.config` has values that JSON can't hold.
        """
        path = history_file(info.run_dir)
        exits.program.watch()  # before sinks import libraries with hooks of their own
        with _opening:
            before = _open_run(path)
            history = before.history if before else HistoryLog.open(path)
            followers: Sequence[Follower] = ()
            try:
                sweep_leftovers(info.run_dir, info.run_dir / "sinks")
                describe_model(info.run_dir, info.project, info.name, info.base_model, info.config)
                keep_options(info.run_dir, sinks, plugins.sinks)
                if before:
                    history, followers = before.hand_over(ledger, owner)
                last, state = history.last, logged_state(history, ledger.taxonomy)
                info = attrs.evolve(info, attempt=last.attempt + 1 if last else 1)
                newest = last.seq if last else 0
                if ledger.budget is not None:
                    ledger.budget.join(info.run_dir, info.attempt)
                delivery = Delivery.start(sinks, info, path, newest, followers)
            except BaseException:
                if before is None or before.history is not history:
                    history.close()
                raise
            totals = totals_of(state)
            read_ids = partial(scenario_ids_of, path) if UNIQUE_SCENARIOS in totals else set[str]
            run = cls(
                info=info,
                taxonomy=ledger.taxonomy,
                plugins=plugins,
                ledger=ledger,
                prices=prices,
                history=history,
                delivery=delivery,
                totals=RunningTotals(ledger.taxonomy, totals),
                dedup=before.dedup if before else Dedup(read_ids),
                summary=SummaryWriter(history, ledger.taxonomy),
                derives=plugins.derives,
                earlier_clock=state.get("time/wall_clock_sec", 0.0),
                owner=owner,
            )
            history.after_sync = run.summary.after_sync
            ledger.add_logged_costs(totals)
            exits.program.opened(run)
            if before:
                before.heir = run
                run.inherited = before.backend or before.inherited
        write_status(info.run_dir, "running", info.attempt)
        return run

    def hand_over(self, ledger: Ledger, owner: str) -> tuple[HistoryLog, Sequence[Follower]]:
        """Write what waits, and return the log and the followers of sinks, for another object.

        The followers deliver the rows in the log and end; new ones continue from their cursors.
        Later additions to this run's builder go to `ledger`.
        """
        log.warning(
            "%s: the %s takes the run over from the %s, at step %d",
            self.name,
            owner,
            self.owner,
            self.last_step,
        )
        self._record_rest()
        with self._lock:
            if self._closed:
                raise HistoryError(
                    f"the run {self.name} is just being closed by the {self.owner}", "Try again."
                )
            history = self.history.hand_over(
                f"belongs to another object now, the {owner}", "Log with that one."
            )
            self._closed = True
            if self.ledger.budget is not None:
                self.ledger.budget.close()
            followers = self.delivery.hand_over(CLOSE_SECONDS, history.size)
            self.ledger.hand_over(ledger)
        self.summary.stop()
        for builder in open_builders():
            if builder.ledger is self.ledger:
                withdraw_default(builder)
        exits.program.closed(self, "running")
        return history, followers

    def current(self) -> Run:
        """Return this run, or that of the object that has taken it over."""
        return self.heir.current() if self.heir else self

    @property
    def name(self) -> str:
        """`<project>/<model>`."""
        return f"{self.info.project}/{self.info.name}"

    @property
    def last_step(self) -> int:
        """Step of the last row; 0 before the first."""
        return self.history.last.step if self.history.last else 0

    def trained_step(self) -> int:
        """Return the last trained step in the log; 0 before the first."""
        # without the sum nothing was trained, and a long log need not be read
        return last_trained_step(self.history.path) if GRADIENT_STEPS in self.totals.totals else 0

    def record(
        self,
        split: str,
        step: int,
        *,
        groups: Sequence[TrajectoryGroup] = (),
        metrics: Mapping[str, Any] | None = None,
        trained: bool = False,
        config: TrainConfig | None = None,
        cursor: int | None = None,
    ) -> MetricsRow:
        """Append a row: given metrics, what waits, and averages and counts of the groups. The step
        trained the groups if `trained`, with the options in `config`, and the run's queue up to a
        `cursor`.

        A row is all or nothing: if it can't be written, what waited is put back. Raises ConfigError
        for a step that is not a count, MetricError for a bad key or value, HistoryError when the
        row can't be written.
        """
        step = checked_step(step)
        with self._lock, self.ledger.taking(split, self.history) as drained:
            counts = groups or trained
            of_row = self.dedup.of_row(split, groups, trained=trained) if counts else NO_GROUPS
            ids = self._new_ids(split, drained, of_row)
            draft = self._draft(split, drained, of_row, metrics or {}, ids)
            if draft.metrics.get("costs/all"):
                draft = with_signal(draft, split, of_row, config, self._eval_seconds)
            row = self._row(split, step, draft, drained, cursor)
            try:
                self.history.append(row)
                self._commit(split, draft, of_row)
            except BaseException:
                if self.history.last is row:  # Ctrl-C came after the row was written: it counts
                    self._commit(split, draft, of_row)
                raise
        if self.ledger.budget is not None:
            self.ledger.budget.row_written(row)
        self.delivery.wake(row.seq)
        return row

    def check(
        self,
        split: str,
        groups: Sequence[TrajectoryGroup],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise what `record` would raise for groups and metrics, without writing a row."""
        of_row = GroupsOfRow(all=groups, new=groups)
        self._draft(split, NOTHING, of_row, metrics or {}, ids=())

    def _draft(
        self,
        split: str,
        drained: Drained,
        groups: GroupsOfRow,
        metrics: Mapping[str, Any],
        ids: Sequence[str],
    ) -> Draft:
        """Draft a row of what is given, what waited and the groups; nothing changes yet."""
        waiting, nonfinite = ({}, {}) if drained is NOTHING else drained.combined(self.taxonomy)
        defaults: dict[str, float] = {}
        if groups.all:
            defaults = count(groups.new, split, self.taxonomy)
            if groups.again:
                defaults |= count_trained([*groups.new, *groups.again])
            defaults |= summarize(groups.all, split, self.taxonomy)
        if split == "train":
            defaults["time/step_wall_s"] = time.monotonic() - self._last_train_row
        draft = self.totals.draft(split, metrics, waiting, defaults, ids)
        return attrs.evolve(draft, nonfinite=nonfinite | draft.nonfinite) if nonfinite else draft

    def _new_ids(self, split: str, drained: Drained, groups: GroupsOfRow) -> Sequence[str]:
        ids = drained.scenario_ids
        if groups.new and split == "train":
            ids |= scenario_ids(groups.new)
        return self.dedup.new_scenarios(ids) if ids else ()

    def _row(
        self, split: str, step: int, draft: Draft, drained: Drained, cursor: int | None
    ) -> MetricsRow:
        clock = time.monotonic() - self._started
        metrics = draft.metrics
        metrics["time/attempt_sec"] = clock
        metrics["time/wall_clock_sec"] = self._earlier_clock + clock
        if self._derives:
            metrics |= self.plugins.rollup(draft.leaves, draft.totals, split, metrics.keys())
        row = MetricsRow(
            seq=self.history.last.seq + 1 if self.history.last else 1,
            attempt=self.info.attempt,
            step=step,
            split=split,
            recorded_at=datetime.now(UTC),
            metrics=metrics,
            nonfinite={key: str(value) for key, value in draft.nonfinite.items()},
            scenario_ids=tuple(draft.ids),
            receipts=tuple([receipt.to_dict() for receipt in drained.receipts]),
            cursor=cursor,
            paid=drained.paid,
            covered=self._covered(drained),
        )
        if row.nonfinite:
            log.warning("step %d: not finite and left out of the row: %s", step, row.nonfinite)
        return row

    def _covered(self, drained: Drained) -> float | None:
        before = self.history.last.covered if self.history.last else None
        return (before or 0.0) + drained.covered if drained.covered else before

    def _commit(self, split: str, draft: Draft, groups: GroupsOfRow) -> None:
        """Continue from a row that is written."""
        if self.totals.commit(draft):
            self.ledger.add_logged_costs(draft.plan.totals)
        if split == "train":
            self._last_train_row, self._eval_seconds = time.monotonic(), 0.0
        else:
            self._eval_seconds += draft.leaves.get("time/step_eval_s", 0.0)
        if groups.all or draft.ids:
            self.dedup.commit(split, groups, draft.ids)

    def close(
        self,
        status: str = "finished",
        timeout: float = CLOSE_SECONDS,
        error: BaseException | None = None,
    ) -> Mapping[str, DeliveryReport]:
        """Write what still waits, drain the sinks within `timeout` seconds, write the status (with
        the reason, if the run failed), and unlock the directory.
        """
        with self._lock:
            if self._closed:
                return {}
            self._closed = True
        if self.history.forked:
            return {}
        try:
            self._record_rest()
            if self.ledger.budget is not None:
                self.ledger.budget.close()
        finally:
            self.ledger.close()
            failed = status not in ("finished", "interrupted")
            reason = reason_of(error) if error and failed else None
            reports = self.delivery.close(timeout, status, reason)
            write_status(self.info.run_dir, status, self.info.attempt, reason)
            self.summary.close()
            self.history.close()
            exits.program.closed(self, status)
        return reports

    def _record_rest(self) -> None:
        for split in self.ledger.splits():
            self.record(split, self.last_step)

    def close_at_exit(self, status: str, timeout: float, error: BaseException | None) -> None:
        """Close the run at the end of the program; paid calls that no run has booked are booked."""
        settle_rest(MetricsBuilder(self.ledger, self.prices))
        self.close(status, timeout, error)


_opening = threading.RLock()
"""Held while a run is opened."""


def _open_run(path: Path) -> Run | None:
    """Return the run that has a log open in this process, by whatever path it was opened."""
    try:
        identity = file_identity(path.stat())
    except OSError:
        return None
    here = cast("list[Run]", exits.program.runs)
    return next((run for run in here if run.log_identity == identity), None)


def renew_locks() -> None:
    """Free the locks in a forked process: a thread that held one is not there."""
    global _opening  # noqa: PLW0603
    _opening = threading.RLock()
    for run in cast("list[Run]", exits.program.runs):
        run._lock = threading.Lock()  # noqa: SLF001


os.register_at_fork(after_in_child=renew_locks)
