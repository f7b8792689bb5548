"""Fifth stop: what waits for the next row. Costs, times and counts that no trajectory carries."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

import attrs

from art_core.base.errors import MetricError
from art_core.metrics.receipt import Receipt
from art_core.metrics.rollup import Totals, ancestors, check_leaf, fitting, leaves_of_totals
from art_core.metrics.samples import Samples, combine, folded
from art_core.metrics.taxonomy import Taxonomy, total

log = logging.getLogger("art_core")

_MANY = 4096


@attrs.frozen
class Taken:
    """What a row took from the ledger; `restore` puts it back."""

    samples: dict[str, Samples]
    receipts: tuple[Receipt, ...]
    scenario_ids: frozenset[str]


NOTHING = Taken({}, (), frozenset())


P = ParamSpec("P")
R = TypeVar("R")


def _by_heir(
    method: Callable[Concatenate[Ledger, P], R],
) -> Callable[Concatenate[Ledger, P], R]:
    """Have a method done by the ledger that this one was handed over to, if it was."""

    @functools.wraps(method)
    def done(self: Ledger, /, *given: P.args, **named: P.kwargs) -> R:
        if self._heir is None:
            with self._lock:
                if self._heir is None:
                    return method(self, *given, **named)
        # Without this ledger's lock: a thread that holds the heir's may wait for it.
        return done(self._heir, *given, **named)

    return done


@attrs.define(eq=False)
class Ledger:
    """Samples not yet in a row, by context and key. Exact and safe under threads: sums are `fsum`.

    What could not be part of a row is refused here, where it is added, so that it never stands in
    the way of a row later. `waiting` says that there is something for the next row to take,
    `out` holds what a row has taken that is not written yet.
    """

    taxonomy: Taxonomy
    waiting: bool = False
    out: Taken = NOTHING
    _samples: dict[str, Samples] = attrs.field(factory=dict)
    _receipts: dict[tuple[object, ...], Receipt] = attrs.field(factory=dict)
    _scenario_ids: set[str] = attrs.field(factory=set)
    _paths: dict[str, str] = attrs.field(factory=dict)
    _leaves: set[str] = attrs.field(factory=set)
    _parents: set[str] = attrs.field(factory=set)
    _booked_at: dict[str, str] = attrs.field(factory=dict)
    _ended: tuple[str, str] | None = None
    _said_late: bool = False
    _heir: Ledger | None = None
    _lock: threading.RLock = attrs.field(factory=threading.RLock, repr=False)

    def __attrs_post_init__(self) -> None:
        _ledgers.add(self)

    def one_row(self) -> AbstractContextManager[object]:
        """Hold off rows in the block: what is added there stands in one."""
        return self._heir.one_row() if self._heir else self._lock

    def hand_over(self, heir: Ledger) -> None:
        """Give what waits to another ledger of the same run, and what is added later."""
        with self._lock:
            self._heir = heir
            samples, receipts, ids = self._samples, self._receipts, self._scenario_ids
            self._samples, self._receipts, self._scenario_ids, self.waiting = {}, {}, set(), False
        heir.restore(Taken(samples, tuple(receipts.values()), frozenset(ids)))

    def learn(self, totals: Totals) -> None:
        """Learn the cost leaves of a run's log, which is open: a new one can't conflict with them.

        What waits at a leaf that does, added before the run was open say, moves to one that fits.
        """
        with self._lock:
            self._ended = None
            logged = leaves_of_totals(totals)
            parents = {parent for leaf in logged for parent in ancestors(leaf)}
            places = {leaf: fitting(leaf, logged, parents) for leaf in self._leaves}
            moved = {leaf: place for leaf, place in places.items() if leaf != place}
            if moved:
                self._leaves, self._parents = set(), set()
                self._paths = {p: leaf for p, leaf in self._paths.items() if leaf not in moved}
                self._move(moved)
                logged |= set(places.values())
            for leaf in logged:
                self._know(leaf)

    def _move(self, moved: Mapping[str, str]) -> None:
        for buffer in self._samples.values():
            for leaf in moved.keys() & buffer.keys():
                buffer.setdefault(moved[leaf], []).extend(buffer.pop(leaf))
        receipts, self._receipts = self._receipts.values(), {}
        for receipt in receipts:
            self.add_receipt(attrs.evolve(receipt, leaf=moved.get(receipt.leaf, receipt.leaf)))
        for leaf, place in moved.items():
            log.warning(
                "cost %r conflicts with those in the run's log: what was added is booked at %r. "
                "Add what follows there.",
                leaf,
                place,
            )

    def _cost_key(self, path: str) -> str:
        key = path if path.startswith("costs/") else f"costs/{path}"
        return self.taxonomy.place(key, "train")

    @_by_heir
    def paid_leaf(self, path: str) -> str:
        """Return where money that is spent already is booked: at its path's key, else, said once,
        at a leaf that fits beside those that there are. MetricError for what is no path of a cost.
        """
        leaf = self._cost_key(path)
        with self._lock:
            place = fitting(leaf, self._leaves, self._parents)
            self._know(place)
            if place != leaf and self._booked_at.get(leaf) != place:
                self._booked_at[leaf] = place
                log.warning(
                    "cost %r conflicts with others of the run: it is booked at %r.", leaf, place
                )
        return place

    @_by_heir
    def cost_leaf(self, path: str) -> str:
        """Return the key of a cost path; MetricError when it conflicts with a leaf or a parent."""
        key = self._paths.get(path)
        if key is None:
            key = self._cost_key(path)
            with self._lock:
                check_leaf(key, self._leaves, self._parents)
                self._know(key)
                self._paths[path] = key
        return key

    def _know(self, leaf: str) -> None:
        self._leaves.add(leaf)
        self._parents.update(ancestors(leaf))

    def add_cost(self, context: str, path: str, usd: float) -> None:
        """Add US dollars at a cost path; MetricError as `cost_leaf`."""
        with self._lock:
            self.add(context, self.cost_leaf(path), usd)

    @_by_heir
    def add(self, context: str, key: str, value: float) -> None:
        """Add one sample; MetricError for one that differs where all must be the same."""
        with self._lock:
            try:
                values = self._samples[context][key]
            except KeyError:
                values = self._samples.setdefault(context, {}).setdefault(key, [])
            if values and not key.startswith("costs/"):
                self._check_same(key, values[-1], value)
            values.append(value)
            self.waiting = True
            if self._ended:
                self._say_late(*self._ended)
            if len(values) > _MANY and self.taxonomy.spec(key).combine == "sum":
                values[:] = folded(values)

    def close(self) -> None:
        """Take note that no further row comes: costs that still wait, or come later, are said."""
        with self._lock:
            self._ended = ("the run is closed, and costs from here on", "before model.close()")
            self._say_late(*self._ended)

    def at_exit(self) -> None:
        """Say costs that still wait when the program ends: of a model that was never logged."""
        with self._lock:
            self._say_late(
                "the program ends, and costs that wait", "before model.log() or model.close()"
            )

    def forget(self) -> None:
        """Begin empty in a forked process; the one that logs never hears of what is added here."""
        self._lock = threading.RLock()
        self._samples, self._receipts, self._scenario_ids, self.waiting = {}, {}, set(), False
        self._ended = (
            "this process was forked from the one that logs, and its costs",
            "in that one",
        )

    def _say_late(self, why: str, where: str) -> None:
        samples = [item for buffer in self._samples.values() for item in buffer.items()]
        costs = {key: total(values) for key, values in samples if key.startswith("costs/")}
        if costs and not self._said_late:
            self._said_late = True
            log.warning("%s come into no row: %s. Add them %s.", why, costs, where)

    def _check_same(self, key: str, before: float, value: float) -> None:
        if value != before and self.taxonomy.spec(key).combine == "same":
            raise MetricError(
                f"metric {key!r} must be the same throughout a step, got {before} and {value}"
            )

    @_by_heir
    def add_receipt(self, receipt: Receipt) -> None:
        """Keep what a cost was paid for."""
        with self._lock:
            before = self._receipts.get(receipt.kind)
            self._receipts[receipt.kind] = before.plus(receipt) if before else receipt
            self.waiting = True

    @_by_heir
    def add_scenarios(self, ids: Iterable[str]) -> None:
        """Remember scenario ids for the next train row."""
        with self._lock:
            self._scenario_ids.update(ids)
            self.waiting = True

    def splits(self) -> list[str]:
        """Return the splits whose rows, in this order, take all that waits."""
        with self._lock:
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

    def take(self, split: str) -> Taken:
        """Remove and return what belongs in the next row of a split.

        That is the split's own context, samples without context, and the costs of every context:
        money does not wait for a row of its own split.
        """
        own = {"", split, "eval"} if split in ("val", "test") else {"", split}
        with self._lock:
            taken: dict[str, Samples] = {}
            left: dict[str, Samples] = {}
            for context, buffer in self._samples.items():
                for key, values in buffer.items():
                    of = taken if context in own or key.startswith("costs/") else left
                    of.setdefault(context, {})[key] = values
            later = set[str]() if split == "train" else self._scenario_ids
            receipts = tuple(self._receipts.values())
            out = Taken(taken, receipts, frozenset(self._scenario_ids - later))
            waiting = bool(left or later)
            # In one statement without a call: Ctrl-C comes before it or after it.
            self._samples, self._receipts, self._scenario_ids, self.waiting, self.out = (
                left,
                {},
                later,
                waiting,
                out,
            )
        return out

    @_by_heir
    def restore(self, taken: Taken) -> None:
        """Put back what a row that was not written had taken."""
        with self._lock:
            for context, samples in taken.samples.items():
                buffer = self._samples.setdefault(context, {})
                for key, values in samples.items():
                    buffer[key] = values + buffer.get(key, [])
            for receipt in taken.receipts:
                self.add_receipt(receipt)
            self._scenario_ids |= taken.scenario_ids
            self.waiting = self.waiting or taken != NOTHING

    def combined(self, taken: Taken) -> tuple[dict[str, float], dict[str, float]]:
        """Combine the samples of each key as its spec says; apart, those that are not finite."""
        return combine(taken.samples.values(), self.taxonomy)


def leave_to_the_parent(ledgers: Iterable[Ledger]) -> None:
    """Empty ledgers in a forked process: their rows are the parent's to write."""
    for ledger in ledgers:
        ledger.forget()


def say_what_is_left(ledgers: Iterable[Ledger]) -> None:
    """Say what waits in ledgers of which no run was opened."""
    for ledger in ledgers:
        ledger.at_exit()


_ledgers: WeakSet[Ledger] = WeakSet()
atexit.register(lambda: say_what_is_left(list(_ledgers)))
os.register_at_fork(after_in_child=lambda: leave_to_the_parent(list(_ledgers)))
