"""The state of this run: what the log says so far, what waits for the next row, and who follows."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from art_core.base.errors import HistoryError, reason_of
from art_core.base.files import sweep_leftovers
from art_core.costs.book import PriceBook
from art_core.costs.builder import MetricsBuilder, open_builders, withdraw_default
from art_core.costs.ledger import NOTHING, Ledger, Taken
from art_core.costs.payer import settle_rest
from art_core.data.trajectory import TrajectoryGroup
from art_core.hooks.host import Plugins
from art_core.log.history import HistoryLog, last_trained_step
from art_core.log.rundir import checked_step, describe_model, say_status
from art_core.log.summary_keeper import SummaryKeeper
from art_core.metrics.rollup import UNIQUE_SCENARIOS, Plan, totals_of
from art_core.metrics.row import MetricsRow
from art_core.metrics.samples import added, set_aside
from art_core.metrics.summarize import count, count_trained, scenario_ids, summarize
from art_core.metrics.taxonomy import Taxonomy, place_all
from art_core.run import exits
from art_core.run.dedup import GroupsToCount, Seen
from art_core.run.open_runs import OpenRuns
from art_core.run.totals import Reckoned, Tally, state_of
from art_core.sinks.delivery import Delivery, DeliveryReport, Follower
from art_core.sinks.protocol import RunInfo, SinkSpec
from art_core.sinks.sync import keep_options

log = logging.getLogger("art_core")

CLOSE_SECONDS = exits.CLOSE_SECONDS
GRADIENT_STEPS = "data/cum/num_gradient_steps"

_NO_GROUPS = GroupsToCount()


@attrs.frozen(eq=False)
class Registered:
    """A backend that the run's model is registered at; `owned` when the model made it."""

    backend: Any
    owned: bool


@attrs.define(eq=False, repr=False)
class Run:
    """An open run. `record` makes a row of what is given and what waits, appends it and wakes the
    sinks.
    """

    info: RunInfo
    taxonomy: Taxonomy
    plugins: Plugins
    ledger: Ledger
    prices: PriceBook
    history: HistoryLog
    delivery: Delivery
    tally: Tally
    seen: Seen
    summary: SummaryKeeper
    _derives: bool
    _earlier_clock: float
    _started: float = attrs.field(factory=time.monotonic)
    _last_train_row: float = attrs.field(factory=time.monotonic)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)
    _closed: bool = False
    owner: str = "another object"
    heir: Run | None = None
    backend: Registered | None = None
    inherited: Registered | None = None

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
        """Open a run's directory, at its last row if it has one, and start its sinks. A run that is
        open in this process is taken over from the object that has it. `owner` names the new one.

        Raises HistoryError when another process has the run, or the directory can't be written;
        ConfigError when `info.config` holds what JSON can't.
        """
        path = info.run_dir / "history.jsonl"
        exits.program.watch()  # before sinks import libraries with hooks of their own
        with _open.lock:
            before = _open.at(path)
            history = before.history if before else HistoryLog.open(path)
            followers: Sequence[Follower] = ()
            try:
                sweep_leftovers(info.run_dir, info.run_dir / "sinks")
                describe_model(info.run_dir, info.project, info.name, info.base_model, info.config)
                keep_options(info.run_dir, sinks, plugins.sinks)
                if before:
                    history, followers = before.hand_over(ledger, owner)
                last, state = history.last, state_of(history, ledger.taxonomy)
                info = attrs.evolve(info, attempt=last.attempt + 1 if last else 1)
                newest = last.seq if last else 0
                delivery = Delivery.start(sinks, info, path, newest, followers)
            except BaseException:
                if before is None or before.history is not history:
                    history.close()
                raise
            totals = totals_of(state)
            run = cls(
                info=info,
                taxonomy=ledger.taxonomy,
                plugins=plugins,
                ledger=ledger,
                prices=prices,
                history=history,
                delivery=delivery,
                tally=Tally(ledger.taxonomy, totals),
                seen=before.seen if before else Seen(path, UNIQUE_SCENARIOS in totals),
                summary=SummaryKeeper(history, ledger.taxonomy),
                derives=plugins.derives,
                earlier_clock=state.get("time/wall_clock_sec", 0.0),
                owner=owner,
            )
            history.after_sync = run.summary.now_and_then
            ledger.learn(totals)
            _open.add(history.identity, run)
            if before:
                before.heir = run
                run.inherited = before.backend or before.inherited
        say_status(info.run_dir, "running", info.attempt)
        exits.program.opened(run)
        return run

    def hand_over(self, ledger: Ledger, owner: str) -> tuple[HistoryLog, Sequence[Follower]]:
        """Write what waits, and give the log and the sinks to another object of this process.

        The followers of the sinks deliver what is in the log and end; the new ones go on from their
        cursors. What is added to this run's builder later goes to `ledger`.
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
            _open.remove(self)
            followers = self.delivery.hand_over(CLOSE_SECONDS, history.size)
            self.ledger.hand_over(ledger)
        self.summary.stop()
        for builder in open_builders():
            if builder.ledger is self.ledger:
                withdraw_default(builder)
        exits.program.closed(self, "running")
        return history, followers

    def current(self) -> Run:
        """Return this run, or the one of the object that has taken it over."""
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
        """Return the last step that the log says was trained; 0 before the first."""
        # without the sum nothing was trained, and a long log need not be read
        return last_trained_step(self.history.path) if GRADIENT_STEPS in self.tally.totals else 0

    def record(
        self,
        split: str,
        step: int,
        *,
        groups: Sequence[TrajectoryGroup] = (),
        metrics: Mapping[str, Any] | None = None,
        trained: bool = False,
    ) -> MetricsRow:
        """Append a row: given metrics, what the builder holds, averages and counts of the groups;
        `trained` if the step trained them.

        A row is all or nothing: when it can't be written, the builder keeps what it held. Raises
        ConfigError for a step that is not a count, MetricError for a bad key or value, HistoryError
        when the log does not take the row.
        """
        step = checked_step(step)
        with self._lock:
            counted = self.seen.to_count(split, groups, trained=trained) if groups else _NO_GROUPS
            row = None
            try:
                taken = self.ledger.take(split) if self.ledger.waiting else NOTHING
                leaves, keys, odd = self._leaves(split, taken, groups, counted, metrics or {})
                ids = taken.scenario_ids
                if counted.new and split == "train":
                    ids = ids | scenario_ids(counted.new)
                new_ids = self.seen.new_scenarios(ids) if ids else ()
                rolled, totals, plan = self._reckon(split, leaves, keys, new_ids)
                row = self._row(split, step, rolled, odd, taken, new_ids)
                self.history.append(row)
                self._keep(split, totals, plan, counted, new_ids)
            except BaseException:
                # Ctrl-C may come when the row is written already: then it counts.
                if row is None or self.history.last is not row:
                    self.ledger.restore(self.ledger.out)
                    self.ledger.out = NOTHING
                else:
                    self._keep(split, totals, plan, counted, new_ids)
                raise
        self.delivery.wake(row.seq)
        return row

    def check(
        self,
        split: str,
        groups: Sequence[TrajectoryGroup],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise what `record` would of groups and metrics, before anything is written or paid."""
        leaves, keys, _ = self._leaves(split, NOTHING, groups, GroupsToCount(groups), metrics or {})
        self.tally.reckon(leaves, keys)

    def _leaves(
        self,
        split: str,
        taken: Taken,
        groups: Sequence[TrajectoryGroup],
        counted: GroupsToCount,
        metrics: Mapping[str, Any],
    ) -> tuple[Mapping[str, float], tuple[str, ...], dict[str, float]]:
        """Return the row's leaves, their keys, and apart the values that are not finite."""
        given, keys = place_all(self.taxonomy, metrics, split)
        leaves, odd = set_aside(given)
        if taken is not NOTHING:
            buffered, odd_waiting = self.ledger.combined(taken)
            leaves, odd = added(buffered, leaves, self.taxonomy), odd_waiting | odd
        if groups:
            averages, _ = place_all(self.taxonomy, summarize(groups, split, self.taxonomy), split)
            counts = count(counted.new, split, self.taxonomy)
            if counted.again:
                counts |= count_trained([*counted.new, *counted.again])
            leaves = {**counts, **averages, **leaves}
        if split == "train" and "time/step_wall_s" not in leaves:
            leaves = {**leaves, "time/step_wall_s": time.monotonic() - self._last_train_row}
        leaves, odd_sums = set_aside(leaves)
        if odd_sums:
            odd = odd | odd_sums
        return leaves, keys if leaves is given else tuple(leaves), odd

    def _reckon(
        self,
        split: str,
        leaves: Mapping[str, float],
        keys: tuple[str, ...],
        new_ids: Sequence[str],
    ) -> Reckoned:
        """Return the row's metrics and the totals after it; nothing changes yet."""
        metrics, totals, plan = self.tally.reckon(leaves, keys)
        if not math.isfinite(sum(metrics.values())):
            metrics, totals = self._within_floats(metrics), self._within_floats(totals)
        if new_ids:
            unique = totals.get(UNIQUE_SCENARIOS, 0.0) + len(new_ids)
            totals[UNIQUE_SCENARIOS] = metrics[UNIQUE_SCENARIOS] = unique
        clock = time.monotonic() - self._started
        metrics["time/attempt_sec"] = clock
        metrics["time/wall_clock_sec"] = self._earlier_clock + clock
        if self._derives:
            metrics |= self.plugins.rollup(leaves, totals, split, metrics.keys())
        return metrics, totals, plan

    def _within_floats(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return values of which none is larger than the largest float: JSON has no infinity."""
        largest = sys.float_info.max
        for section in {k.partition("/")[0] for k, v in values.items() if not math.isfinite(v)}:
            self.prices.say_once(
                f"{section}: a sum is more than a float holds; the largest float is recorded"
            )
        return {key: max(-largest, min(value, largest)) for key, value in values.items()}

    def _row(
        self,
        split: str,
        step: int,
        metrics: dict[str, float],
        odd: dict[str, float],
        taken: Taken,
        new_ids: Sequence[str],
    ) -> MetricsRow:
        last = self.history.last
        row = MetricsRow(
            last.seq + 1 if last is not None else 1,
            self.info.attempt,
            step,
            split,
            datetime.now(UTC),
            metrics,
            {key: str(value) for key, value in odd.items()} if odd else {},
            tuple(new_ids),
            tuple([r.to_dict() for r in taken.receipts]) if taken.receipts else (),
        )
        if odd:
            log.warning("step %d: not finite and left out of the row: %s", step, row.nonfinite)
        return row

    def _keep(
        self,
        split: str,
        totals: dict[str, float],
        plan: Plan,
        counted: GroupsToCount,
        new_ids: Sequence[str],
    ) -> None:
        """Go on from a row that is written."""
        self.ledger.out = NOTHING
        if self.tally.keep(totals, plan):
            self.ledger.learn(plan.totals)
        if split == "train":
            self._last_train_row = time.monotonic()
        if counted is not _NO_GROUPS or new_ids:
            self.seen.remember(split, counted, new_ids)

    def renew_lock(self) -> None:
        """Free the lock in a forked process, where the thread that held it is not."""
        self._lock = threading.Lock()

    def close(
        self,
        status: str = "finished",
        timeout: float = CLOSE_SECONDS,
        error: BaseException | None = None,
    ) -> Mapping[str, DeliveryReport]:
        """Write what still waits, drain the sinks within `timeout` seconds, say the status, and of
        an error the reason; free the directory.
        """
        with self._lock:
            if self._closed:
                return {}
            self._closed = True
        if self.history.forked:
            return {}
        try:
            self._record_rest()
        finally:
            self.ledger.close()
            told = status not in ("finished", "interrupted")
            reason = reason_of(error) if error and told else None
            reports = self.delivery.close(timeout, status, reason)
            say_status(self.info.run_dir, status, self.info.attempt, reason)
            self.summary.close()
            self.history.close()
            exits.program.closed(self, status)
            _open.remove(self)
        return reports

    def _record_rest(self) -> None:
        for split in self.ledger.splits():
            self.record(split, self.last_step)

    def close_at_exit(self, status: str, timeout: float, error: BaseException | None) -> None:
        """Close the run when the program ends: calls that no run has paid are booked here."""
        settle_rest(MetricsBuilder(self.ledger, self.prices))
        self.close(status, timeout, error)


_open: OpenRuns[Run] = OpenRuns()
