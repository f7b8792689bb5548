"""The computation of a row from its leaves: the tree of costs, running totals, rates; pure.

A `Plan` is compiled once for all rows that have the same names, which most rows of a run have. A
row is drafted first, and committed when it is in the log: a row that was not written changes
nothing.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import attrs

from art_core.base.errors import MetricError
from art_core.metrics.taxonomy import CostTree, Taxonomy, ancestors, cumulative_key, number

log = logging.getLogger("art_core")

Totals = Mapping[str, float]
"""The run's running sums, `costs/cum/...`, `time/cum/...`, `data/cum/...`. Each row has all."""
Values = Callable[[Mapping[str, float]], Iterable[float]]

UNIQUE_SCENARIOS = "data/cum/num_unique_scenarios"
_RATES = (
    ("throughput/avg_trainer_tok_per_s", "data/cum/trainer_tokens", "time/cum/trainer_s"),
    ("throughput/avg_actor_tok_per_s", "data/cum/actor_tokens", "time/cum/actor_s"),
)


class Names(NamedTuple):
    """Names of a row: those given with it, and the keys of values that waited and of defaults."""

    split: str
    given: tuple[str, ...]
    waiting: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()


@attrs.frozen
class Plan:
    """How to compute the rows that have these names.

    `keys` are those of the given names. Values of `added` keys are given and waited: both count.
    `costs` are the cost leaves. `sums` are pairs of a parent and a function that returns the values
    of its children, deepest first. `running` are pairs of a key and the total that it is added to;
    `totals` has a zero for each of those.
    """

    names: Names
    keys: tuple[str, ...]
    added: tuple[str, ...]
    costs: tuple[str, ...]
    sums: tuple[tuple[str, Values], ...]
    running: tuple[tuple[str, str], ...]
    totals: dict[str, float]


def compile_plan(names: Names, totals: Totals, taxonomy: Taxonomy) -> Plan:
    """Make the plan of rows with these names.

    Raises MetricError for a split or name that is invalid, for a metric that is given twice, and
    for a cost that is a leaf here and a parent elsewhere in the row or the run.
    """
    taxonomy.check_split(names.split)
    placed = place_names(names.given, names.split, taxonomy)
    keys = tuple(dict.fromkeys((*names.defaults, *names.waiting, *placed)))
    leaves = [key for key in keys if key.startswith("costs/")]
    parents = {parent for leaf in leaves for parent in ancestors(leaf)}
    tree = CostTree.of_totals(totals)
    tree.parents |= parents
    for leaf in leaves:
        tree.check(leaf)
    nested = sorted(parents, key=lambda key: (-key.count("/"), key))
    summed = [*nested, "costs/all"] if leaves else []
    children: dict[str, list[str]] = {}
    for node in (*leaves, *nested):
        children.setdefault(_parent(node), []).append(node)
    others = [key for key in keys if not key.startswith("costs/") and taxonomy.spec(key).cumulative]
    running = [(key, cumulative_key(key)) for key in (*leaves, *others, *summed)]
    both = (key for key in placed if key in names.waiting)
    return Plan(
        names=names,
        keys=placed,
        added=tuple(key for key in both if taxonomy.spec(key).combine == "sum"),
        costs=tuple(leaves),
        sums=tuple((parent, _values_of(children[parent])) for parent in summed),
        running=tuple(running),
        totals={total: 0.0 for _, total in running},
    )


def place_names(given: Sequence[str], split: str, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return the keys of names; MetricError for a name that is invalid or given twice."""
    keys = tuple(taxonomy.place(name, split) for name in given)
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MetricError(
            f"metric {twice!r} is given twice: with and without its section, or under a "
            "former name too"
        )
    return keys


def compute_row(
    leaves: Mapping[str, float], totals: Totals, plan: Plan
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (metrics, new totals): leaves with their parents, totals and ratios; O(nodes).

    `totals` must have every total of the plan: `{**plan.totals, **totals_so_far}`.
    Raises MetricError for a negative cost.
    """
    for leaf in plan.costs:
        if leaves[leaf] < 0:
            raise MetricError(f"a cost can't be negative: {leaf!r} {leaves[leaf]!r}")
    metrics = {**leaves}
    for parent, children_of in plan.sums:
        metrics[parent] = sum(children_of(metrics))
    new = {**totals}
    for key, total in plan.running:
        new[total] += metrics[key]
    metrics.update(new)
    for rate, tokens, seconds in _RATES:
        elapsed = new.get(seconds)
        if elapsed and tokens in new:
            metrics[rate] = new[tokens] / elapsed
    return metrics, new


def split_nonfinite(
    values: Mapping[str, float],
) -> tuple[Mapping[str, float], dict[str, float]]:
    """Return (finite values, the others); the same mapping when all are finite."""
    if math.isfinite(sum(values.values())):
        return values, {}
    nonfinite = {key: value for key, value in values.items() if not math.isfinite(value)}
    return {key: value for key, value in values.items() if key not in nonfinite}, nonfinite


def totals_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the totals in a row: the last row of a run is its state."""
    return {key: value for key, value in metrics.items() if "/cum/" in key}


def _parent(key: str) -> str:
    head, _, _ = key.rpartition("/")
    return "costs/all" if head == "costs" else head


def _values_of(keys: Sequence[str]) -> Values:
    """Return a function that reads the values of keys from a row, faster than a loop."""
    return itemgetter(*keys) if len(keys) > 1 else lambda values: (values[keys[0]],)


_MAX_PLANS = 256


@attrs.frozen
class Draft:
    """A row that is not written yet.

    `leaves` are what was logged, `metrics` the leaves and all that is derived from them, `totals`
    the run's totals after the row. `nonfinite` values are in none of these. `ids` are the scenario
    ids that the run has not seen before.
    """

    leaves: Mapping[str, float]
    metrics: dict[str, float]
    totals: dict[str, float]
    plan: Plan
    nonfinite: dict[str, float]
    ids: Sequence[str] = ()


@attrs.define
class RunningTotals:
    """The totals of a run so far, and the plans of its rows, whose totals are all among them."""

    taxonomy: Taxonomy
    totals: dict[str, float]
    _plans: dict[Names, Plan] = attrs.field(factory=dict)
    _capped: set[str] = attrs.field(factory=set)

    def draft(
        self,
        split: str,
        given: Mapping[str, Any],
        waiting: Mapping[str, float] | None = None,
        defaults: Mapping[str, float] | None = None,
        ids: Sequence[str] = (),
    ) -> Draft:
        """Draft a row of given metrics, of values that waited for it, and of defaults.

        A given value is added to one that waited if the metric is a sum, else it replaces it. Both
        replace defaults. MetricError for a bad key or value.
        """
        waiting, defaults = waiting or {}, defaults or {}
        plan = self._plan(Names(split, tuple(given), tuple(waiting), tuple(defaults)))
        placed = {
            key: value if type(value) is float else number(key, value)
            for key, value in zip(plan.keys, given.values(), strict=True)
        }
        leaves = {**defaults, **waiting, **placed}
        for key in plan.added:
            leaves[key] = waiting[key] + placed[key]
        finite, nonfinite = split_nonfinite(leaves)
        if not nonfinite:
            return self._computed(leaves, plan, ids)
        finite_given, nonfinite_given = split_nonfinite(placed)
        if nonfinite_given:  # what waited at the same keys still counts
            draft = self.draft(split, finite_given, waiting, defaults, ids)
        else:
            draft = self.draft(split, finite, ids=ids)
        return attrs.evolve(draft, nonfinite=(nonfinite_given or nonfinite) | draft.nonfinite)

    def _plan(self, names: Names) -> Plan:
        return self._plans.get(names) or compile_plan(names, self.totals, self.taxonomy)

    def _computed(self, leaves: Mapping[str, float], plan: Plan, ids: Sequence[str]) -> Draft:
        totals = self.totals if plan.names in self._plans else {**plan.totals, **self.totals}
        metrics, totals = compute_row(leaves, totals, plan)
        if not math.isfinite(sum(metrics.values())):
            metrics, totals = self._within_floats(metrics), self._within_floats(totals)
        if ids:
            unique = totals.get(UNIQUE_SCENARIOS, 0.0) + len(ids)
            totals[UNIQUE_SCENARIOS] = metrics[UNIQUE_SCENARIOS] = unique
        return Draft(leaves, metrics, totals, plan, {}, ids)

    def _within_floats(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return values that are at most the largest float: JSON has no infinity."""
        largest = sys.float_info.max
        sections = {k.partition("/")[0] for k, v in values.items() if not math.isfinite(v)}
        for section in sorted(sections - self._capped):
            log.warning(
                "%s: a sum is more than a float holds; the largest float is recorded", section
            )
        self._capped |= sections
        return {key: max(-largest, min(value, largest)) for key, value in values.items()}

    def commit(self, draft: Draft) -> bool:
        """Continue from a row that was written; True when its plan is new."""
        self.totals = draft.totals
        if draft.plan.names in self._plans:
            return False
        if len(self._plans) >= _MAX_PLANS:
            self.clear_plans()
        self._plans[draft.plan.names] = draft.plan
        return True

    def clear_plans(self) -> None:
        """Empty the cache of plans."""
        self._plans.clear()
