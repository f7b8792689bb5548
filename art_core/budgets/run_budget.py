"""The budget of a run: reservations of its steps and evaluations, settled by rows of its log."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import HistoryError
from art_core.budgets.account import BudgetAccount, Reservation
from art_core.budgets.budget import Budget
from art_core.budgets.estimate import REMEMBERED, Costs, gain_per_dollar
from art_core.log.history import BLANK, MetricsRow, lines_backwards
from art_core.log.rundir import budget_file, history_file

STEP = "step"
GAINED_OVER = 20
"""Steps from which the gain of reward per dollar is read."""


@attrs.define(eq=False)
class RunBudget:
    """The budget of one run. A reservation is made by the first of rollouts, training and
    evaluation after a row, and each row settles that of its split.
    """

    account: BudgetAccount
    trains: bool = False
    _about: dict[str, Any] = attrs.field(factory=dict)
    _open: dict[str, Reservation] = attrs.field(factory=dict)
    _costs: dict[str, Costs] = attrs.field(factory=dict)
    _gains: deque[tuple[float, float]] = attrs.field(factory=lambda: deque(maxlen=GAINED_OVER))

    @property
    def terms(self) -> Budget:
        """The terms."""
        return self.account.terms

    @classmethod
    def of(cls, terms: Budget, run_dir: Path, *, trains: bool) -> RunBudget:
        """Return the budget of the run in a directory; nothing is written before it is used."""
        path = terms.file or budget_file(run_dir)
        return cls(BudgetAccount(terms, path, "run"), trains)

    def join(self, run_dir: Path, attempt: int) -> None:
        """Begin with what the log shows, and settle from logs what killed processes reserved.

        A shared file is linked from the run's directory.
        """
        own = budget_file(run_dir)
        if self.terms.file not in (None, own) and not own.exists():
            own.unlink(missing_ok=True)
            own.symlink_to(self.terms.file)
        here = str(run_dir.absolute())
        of_runs = {each.run for each in self.account.refresh().open.values() if each.run}
        for run in {here, *of_runs}:
            _settle_from_log(self.account, run)
        rows = list(itertools.islice(newest_rows(run_dir), 4 * REMEMBERED))
        self._about = {"run": here, "attempt": attempt, "seq": rows[0].seq if rows else 0}
        for row in reversed(rows):
            self._remember(row)

    def check_left(self) -> None:
        """Raise BudgetError if nothing is left beside what runs have reserved."""
        if "train" not in self._open:
            self._all_left()

    def _all_left(self) -> float:
        """Return the dollars that are left; BudgetError if there are none."""
        self.account.refresh()
        if self.account.left <= 0:
            raise self.account.refused(
                f"nothing is left of the budget of ${self.terms.usd:g}: "
                f"${self.account.spent:.4g} spent, ${self.account.tally.reserved:.4g} reserved",
                "Raise the limit. Of runs that share a file, give each a per_step: without it the "
                "first step reserves all that is left.",
            )
        return self.account.left

    def begin(self, split: str) -> None:
        """Reserve the step of a row of training, or the evaluation of another split, unless that is
        done. BudgetError if it would exceed the budget, or if training gains too little.
        """
        if split in self._open or not self._about:
            return
        if split == "train":
            self._check_gain()
        usd = self._bound(split)
        if usd is None and self._open:
            self._open[split] = next(iter(self._open.values()))  # it holds all that was left
            return
        if usd is None:
            usd = self._all_left()
        self._open[split] = self.account.reserve(_kind(split), usd, **self._about)

    def opened(self, split: str) -> Reservation | None:
        """Return the reservation of a split."""
        return self._open.get(split)

    def begin_step(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Reserve a step; return its options, with a checkpoint if no other step fits after it."""
        self.begin("train")
        usd = self._bound("train")
        is_last = usd is not None and usd > self.account.left
        return {**options, "save_checkpoint": True} if is_last else dict(options)

    def row_written(self, row: MetricsRow) -> None:
        """Settle what a row of the log shows."""
        self._about["seq"] = row.seq
        self._remember(row)
        mine = self._open.pop(row.split, None)
        settled = [mine.id] if mine is not None and mine not in self._open.values() else []
        logged = row.metrics.get("costs/cum/all", 0.0)
        self.account.note_row(self._about["run"], row.seq, logged, row.covered or 0.0, settled)

    def close(self) -> None:
        """Release what is reserved: the log has all that was spent."""
        for reservation in set(self._open.values()):
            self.account.settle(reservation, 0.0)
        self._open.clear()
        self.account.close()

    def _remember(self, row: MetricsRow) -> None:
        usd, reward = row.metrics.get("costs/all", 0.0), row.metrics.get("reward/mean")
        self._costs.setdefault(row.split, Costs()).add(usd)
        if row.split == "train" and reward is not None:
            self._gains.append((row.metrics.get("costs/cum/all", 0.0), reward))

    def _bound(self, split: str) -> float | None:
        """Return an upper bound of a step or an evaluation; None if nothing is known of it."""
        costs, most = self._costs.get(split, Costs()), self.terms.per_step
        usd = costs.bound()
        if split != "train" or most is None:
            return usd
        usual = statistics.median(costs.values) if costs.count else 0.0
        if usual > most:
            raise self.account.refused(
                f"a step costs ${usual:.4g} as a rule, more than per_step=${most:g}",
                "Raise per_step, or make smaller steps.",
            )
        return most if usd is None else min(usd, most)

    def _check_gain(self) -> None:
        least = self.terms.min_reward_per_usd
        gain = None if least is None else gain_per_dollar(self._gains)
        if least is not None and gain is not None and gain < least:
            raise self.account.refused(
                f"the last {len(self._gains)} steps gained at most {gain:.3g} of mean reward per "
                f"dollar, less than min_reward_per_usd={least:g}",
                "Lower it to go on, or change what is trained.",
            )


def _kind(split: str) -> str:
    return STEP if split == "train" else f"evaluation {split}"


def newest_rows(run_dir: Path) -> Iterator[MetricsRow]:
    """Yield the rows of a run's log, the newest first."""
    with suppress(FileNotFoundError):
        for line in lines_backwards(history_file(run_dir)):
            if line.strip(BLANK):
                with suppress(HistoryError):  # torn, or of a later release
                    yield MetricsRow.from_line(line)


def _settle_from_log(account: BudgetAccount, run: str) -> None:
    """Settle the steps and evaluations of a run whose rows are in its log."""
    waiting = {key: each for key, each in account.tally.open.items() if each.run == run}
    first = min((each.seq for each in waiting.values()), default=None)
    last, settled = None, set[str]()
    for row in newest_rows(Path(run)):
        last = last or row
        if first is None or row.seq <= first:
            break
        settled |= {
            key
            for key, each in waiting.items()
            if (each.kind, each.attempt) == (_kind(row.split), row.attempt) and row.seq > each.seq
        }
    if last is not None:
        logged = last.metrics.get("costs/cum/all", 0.0)
        account.note_row(run, last.seq, logged, last.covered or 0.0, sorted(settled))
