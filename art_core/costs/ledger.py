"""The ledger: costs, times and counts that wait for the next row."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import attrs

from art_core.base.errors import MetricError
from art_core.budgets.run_budget import RunBudget
from art_core.log.history import HistoryLog
from art_core.metrics.receipt import Receipt
from art_core.metrics.rollup import Totals
from art_core.metrics.taxonomy import CostTree, Taxonomy, combine_values, total

log = logging.getLogger("art_core")

Samples = dict[str, list[float]]
"""The samples of each key since the last row."""
UNPRICED = "data/step_unpriced_calls"
_PARTLY_PRICED = "data/step_partly_priced_calls"
_MAX_SAMPLES = 4096
# One for all ledgers: a ledger that was handed over adds to another one.
_lock = threading.RLock()


@attrs.frozen
class Drained:
    """The part of a ledger that a row takes."""

    samples: dict[str, Samples] = attrs.field(factory=dict)
    receipts: tuple[Receipt, ...] = ()
    scenario_ids: frozenset[str] = frozenset()
    paid: int | None = None
    covered: float = 0.0

    def combined(self, taxonomy: Taxonomy) -> tuple[dict[str, float], dict[str, float]]:
        """Return the finite samples of each key, combined by its spec, and the others."""
        merged: Samples = {}
        for samples in self.samples.values():
            for key, values in samples.items():
                merged.setdefault(key, []).extend(values)
        combined: dict[str, float] = {}
        nonfinite: dict[str, float] = {}
        for key, values in merged.items():
            finite = [v for v in values if math.isfinite(v)]
            if finite:
                combined[key] = combine_values(finite, taxonomy.spec(key).combine)
            if len(finite) < len(values):
                nonfinite[key] = next(v for v in values if not math.isfinite(v))
        return combined, nonfinite


NOTHING = Drained()


@attrs.define(eq=False)
class Ledger:
    """Samples that wait for a row, by context and key; exact and safe under threads.

    Invalid samples are rejected on add, so writing a row cannot fail because of them. `waiting` is
    True when there is something for the next row. `booked` is the number of the last paid call of
    the run's queue. The run's `budget`, if it has one, has counted `covered` dollars of what waits.
    """

    taxonomy: Taxonomy
    waiting: bool = False
    budget: RunBudget | None = None
    covered: float = 0.0
    _samples: dict[str, Samples] = attrs.field(factory=dict)
    _receipts: dict[tuple[object, ...], Receipt] = attrs.field(factory=dict)
    _scenario_ids: set[str] = attrs.field(factory=set)
    _tree: CostTree = attrs.field(factory=CostTree)
    _resolved: dict[str, str] = attrs.field(factory=dict)
    _ended: tuple[str, str] | None = None
    _warned_late: bool = False
    _heir: Ledger | None = None
    booked: int = 0

    def __attrs_post_init__(self) -> None:
        _ledgers.add(self)

    def hand_over(self, heir: Ledger) -> None:
        """Move all samples to another ledger of the same run, also those that are added later."""
        with _lock:
            drained = Drained(
                self._samples,
                tuple(self._receipts.values()),
                frozenset(self._scenario_ids),
                covered=self.covered,
            )
            self._clear()
            self._heir = heir
            heir.booked = max(heir.booked, self.booked)
            heir.restore(drained)

    def add_logged_costs(self, totals: Totals) -> None:
        """Add the cost leaves of the run's log, which is open: new ones must not conflict.

        Samples that already wait at a conflicting leaf move to the nearest valid one.
        """
        with _lock:
            self._ended = None
            logged = CostTree.of_totals(totals)
            places = {leaf: logged.resolve_conflict(leaf) for leaf in self._tree.leaves}
            moved = {leaf: place for leaf, place in places.items() if leaf != place}
            if moved:
                self._tree = CostTree()
                self._move(moved)
            for leaf in (*logged.leaves, *places.values()):
                self._tree.add(leaf)

    def _move(self, moved: Mapping[str, str]) -> None:
        for buffer in self._samples.values():
            for leaf in moved.keys() & buffer.keys():
                buffer.setdefault(moved[leaf], []).extend(buffer.pop(leaf))
        receipts, self._receipts = self._receipts.values(), {}
        for receipt in receipts:
            self._keep_receipt(attrs.evolve(receipt, leaf=moved.get(receipt.leaf, receipt.leaf)))
        for leaf, place in moved.items():
            log.warning(
                "cost %r conflicts with those in the run's log: what was added is booked at %r. "
                "Add what follows there.",
                leaf,
                place,
            )

    def _paid_key(self, path: str) -> str:
        """Return the key under which to record money already spent. If the path's own key conflicts
        with others, use the nearest valid key and warn once.
        """
        leaf = self._placed(path)
        key = self._tree.resolve_conflict(leaf)
        self._tree.add(key)
        if key != leaf and self._resolved.get(leaf) != key:
            self._resolved[leaf] = key
            log.warning("cost %r conflicts with others of the run: it is booked at %r.", leaf, key)
        return key

    def _placed(self, path: str) -> str:
        return self.taxonomy.place(_cost_path(path), "train")

    def add_cost(self, context: str, path: str, usd: float) -> None:
        """Add US dollars; MetricError for a path that is invalid or conflicts with other costs."""
        with _lock:
            if self._heir:
                self._heir.add_cost(context, path, usd)
                return
            key = _cost_path(path)
            if key not in self._tree.leaves:
                key = self._placed(path)
                self._tree.check(key)
                self._tree.add(key)
            self.add(context, key, usd)

    def add(self, context: str, key: str, value: float) -> None:
        """Add one sample; MetricError for one that differs where all must be the same."""
        with _lock:
            if self._heir:
                self._heir.add(context, key, value)
                return
            try:
                values = self._samples[context][key]
            except KeyError:
                values = self._samples.setdefault(context, {}).setdefault(key, [])
            if values and not key.startswith("costs/"):
                self._check_same(key, values[-1], value)
            values.append(value)
            self.waiting = True
            if self._ended:
                self._warn_late(*self._ended)
            if len(values) > _MAX_SAMPLES and self.taxonomy.spec(key).combine == "sum":
                values[:] = _folded(values)

    def _check_same(self, key: str, before: float, value: float) -> None:
        if value != before and self.taxonomy.spec(key).combine == "same":
            raise MetricError(
                f"metric {key!r} must be the same throughout a step, got {before} and {value}"
            )

    def add_receipt(self, context: str, path: str, receipt: Receipt, covered: float = 0.0) -> None:
        """Add a receipt and its US dollars at a path, or at the nearest valid key if that conflicts
        with other costs. Calls without a price are counted. MetricError for an invalid path.
        """
        with _lock:
            if self._heir:
                self._heir.add_receipt(context, path, receipt, covered)
                return
            self.covered += covered
            key = self._paid_key(path)
            if receipt.usd is not None:
                self.add(context, key, receipt.usd)
            elif not receipt.device_seconds:
                self.add("", UNPRICED, 1.0)
            if receipt.unread:
                self.add("", _PARTLY_PRICED, 1.0)
            self._keep_receipt(attrs.evolve(receipt, leaf=key))

    @contextmanager
    def once(self, number: int) -> Iterator[bool]:
        """Return whether a paid call of the queue is added for the first time; numbers rise."""
        with _lock:
            ledger = self._heir or self
            is_new = number > ledger.booked
            yield is_new
            ledger.booked = max(number, ledger.booked)

    def _keep_receipt(self, receipt: Receipt) -> None:
        before = self._receipts.get(receipt.kind)
        self._receipts[receipt.kind] = before.plus(receipt) if before else receipt
        self.waiting = True

    def add_scenarios(self, ids: Iterable[str]) -> None:
        """Add scenario ids for the next train row."""
        with _lock:
            if self._heir:
                self._heir.add_scenarios(ids)
                return
            self._scenario_ids.update(ids)
            self.waiting = True

    def splits(self) -> list[str]:
        """Return the splits whose rows, in this order, take all that waits."""
        with _lock:
            of_train = bool(self._scenario_ids or self._receipts)
            others: set[str] = set()
            for context, buffer in self._samples.items():
                costs = sum(key.startswith("costs/") for key in buffer)
                if context in ("", "train"):
                    of_train = True
                elif costs < len(buffer):
                    others.add("val" if context == "eval" else context)
                of_train = of_train or costs > 0
            return ["train"] * of_train + sorted(others)

    @contextmanager
    def taking(self, split: str, history: HistoryLog) -> Iterator[Drained]:
        """Take what belongs in the next row of a split, for a block that appends the row.

        That is the split's own context, samples without context, and the costs of all contexts. If
        the block raises before the log has a new row, all of it is put back.
        """
        drained, last = NOTHING, history.last
        try:
            if self.waiting:
                with _lock:
                    own, left = self._divided(split)
                    later = set[str]() if split == "train" else self._scenario_ids
                    ids = frozenset(self._scenario_ids - later)
                    receipts, paid = tuple(self._receipts.values()), self.booked or None
                    new = Drained(own, receipts, ids, paid, self.covered)
                    rest: Any = (left, {}, later, 0.0, bool(left or later))
                    # In one statement without a call: Ctrl-C comes before it or after it.
                    (
                        (
                            self._samples,
                            self._receipts,
                            self._scenario_ids,
                            self.covered,
                            self.waiting,
                        ),
                        drained,
                    ) = rest, new
            yield drained
        except BaseException:
            if history.last is last:
                self.restore(drained)
            raise

    def _divided(self, split: str) -> tuple[dict[str, Samples], dict[str, Samples]]:
        own = {"", split, "eval"} if split in ("val", "test") else {"", split}
        taken: dict[str, Samples] = {}
        left: dict[str, Samples] = {}
        for context, buffer in self._samples.items():
            for key, values in buffer.items():
                part = taken if context in own or key.startswith("costs/") else left
                part.setdefault(context, {})[key] = values
        return taken, left

    def restore(self, drained: Drained) -> None:
        """Put back the part that was taken for a row that was not written."""
        with _lock:
            if self._heir:
                self._heir.restore(drained)
                return
            for context, samples in drained.samples.items():
                buffer = self._samples.setdefault(context, {})
                for key, values in samples.items():
                    buffer[key] = values + buffer.get(key, [])
            for receipt in drained.receipts:
                self._keep_receipt(receipt)
            self._scenario_ids |= drained.scenario_ids
            self.covered += drained.covered
            self.waiting = self.waiting or drained != NOTHING

    def close(self) -> None:
        """Warn of costs that still wait, and of later ones: the run writes no further row."""
        with _lock:
            self._ended = ("the run is closed, and costs from here on", "before model.close()")
            self._warn_late(*self._ended)

    def at_exit(self) -> None:
        """Warn of costs that wait when the program ends: their model was never logged."""
        with _lock:
            self._warn_late(
                "the program ends, and costs that wait", "before model.log() or model.close()"
            )

    def clear_in_child(self) -> None:
        """Empty the ledger in a forked process: its rows are written by the parent."""
        self._clear()
        self._ended = (
            "this process was forked from the one that logs, and its costs",
            "in that one",
        )

    def _clear(self) -> None:
        self._samples, self._receipts, self._scenario_ids, self.waiting = {}, {}, set(), False
        self.covered = 0.0

    def _warn_late(self, reason: str, place: str) -> None:
        samples = [item for buffer in self._samples.values() for item in buffer.items()]
        costs = {key: total(values) for key, values in samples if key.startswith("costs/")}
        if costs and not self._warned_late:
            self._warned_late = True
            log.warning("%s come into no row: %s. Add them %s.", reason, costs, place)


def _cost_path(path: str) -> str:
    return path if path.startswith("costs/") else f"costs/{path}"


def _folded(values: list[float]) -> list[float]:
    """Return fewer samples with the same sum, and one that is not finite if there are any."""
    nonfinite = [v for v in values if not math.isfinite(v)]
    return [total([v for v in values if math.isfinite(v)]), *nonfinite[:1]]


def clear_in_child(ledgers: Iterable[Ledger]) -> None:
    """Empty ledgers in a forked process, and free the lock: a thread that held it is not there."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for ledger in ledgers:
        ledger.clear_in_child()


def warn_of_costs_left(ledgers: Iterable[Ledger]) -> None:
    """Warn of costs in ledgers whose run was not opened."""
    for ledger in ledgers:
        ledger.at_exit()


_ledgers: WeakSet[Ledger] = WeakSet()
atexit.register(lambda: warn_of_costs_left(list(_ledgers)))
os.register_at_fork(after_in_child=lambda: clear_in_child(list(_ledgers)))
