"""The running totals of a run, and drafts of its rows.

A row is drafted first, and committed when it is in the log: a row that was not written changes
nothing.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from art_core.log.history import (
    HistoryLog,
    read_rows,
    scenario_ids_of,
    unreadable_totals,
)
from art_core.metrics.rollup import (
    UNIQUE_SCENARIOS,
    Names,
    Plan,
    compile_plan,
    compute_row,
    split_nonfinite,
)
from art_core.metrics.taxonomy import Taxonomy, cumulative_key, number

log = logging.getLogger("art_core")

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


def state_of(history: HistoryLog, taxonomy: Taxonomy) -> Mapping[str, float]:
    """Return the state of a run by its log: the metrics of the last row.

    Rows that ART wrote lack sums, so the newest value of each key counts, and the scenario ids that
    ART kept. A total that is not a number in the last row, such as null, is computed from all rows.
    """
    if history.last is None:
        return {}
    lost = unreadable_totals(history.path)
    if history.last.seq and not lost:
        return history.last.metrics
    if lost:
        log.warning(
            "%s: the last row has no number at %s: computed from the rows before",
            history.path,
            ", ".join(lost),
        )
    state: dict[str, float] = {}
    for row, _ in read_rows(history.path):
        state |= _with_lost(state, taxonomy.renamed(row.metrics, foreign=not row.seq), lost)
    if UNIQUE_SCENARIOS not in state or UNIQUE_SCENARIOS in lost:
        ids = scenario_ids_of(history.path)
        state |= {UNIQUE_SCENARIOS: float(len(ids))} if ids else {}
    return state


def _with_lost(
    state: Mapping[str, float], metrics: Mapping[str, float], lost: Sequence[str]
) -> dict[str, float]:
    """Return a row's metrics, and the `lost` totals that the row does not have, added up."""
    leaves = {cumulative_key(key): key for key in metrics if "/cum/" not in key}
    return {
        total: state.get(total, 0.0) + metrics[leaves[total]]
        for total in lost
        if total in leaves and total not in metrics
    } | dict(metrics)
