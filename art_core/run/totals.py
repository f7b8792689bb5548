"""Sixth stop, with a memory: the run's totals, and the plans of its rows.

A row is reckoned first, and kept once it stands in the log: one that was not written changes
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import attrs

from art_core.log.history import (
    HistoryLog,
    read_rows,
    scenario_ids_of,
    unreadable_totals,
)
from art_core.metrics.rollup import NO_PLAN, UNIQUE_SCENARIOS, Plan, compile_plan, roll
from art_core.metrics.taxonomy import Taxonomy, cumulative_key

log = logging.getLogger("art_core")

_REMEMBERED_PLANS = 256
Reckoned = tuple[dict[str, float], dict[str, float], Plan]
"""A row's metrics, the totals after it, and the plan that they were made by."""


def state_of(history: HistoryLog, taxonomy: Taxonomy) -> Mapping[str, float]:
    """Return what the log says of the run so far: its last row. Rows that ART wrote leave sums out,
    so that of those the newest value of each key counts, and the scenario ids that ART kept.

    A sum over the run that is no number in the last row, such as null, is computed from the rows.
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
        state |= _added_up(state, taxonomy.renamed(row.metrics, foreign=not row.seq), lost)
    if UNIQUE_SCENARIOS not in state or UNIQUE_SCENARIOS in lost:
        ids = scenario_ids_of(history.path)
        state |= {UNIQUE_SCENARIOS: float(len(ids))} if ids else {}
    return state


def _added_up(
    state: Mapping[str, float], metrics: Mapping[str, float], lost: Sequence[str]
) -> dict[str, float]:
    """Return a row's metrics, with those of the `lost` totals that it does not have itself."""
    leaves = {cumulative_key(key): key for key in metrics if "/cum/" not in key}
    return {
        total: state.get(total, 0.0) + metrics[leaves[total]]
        for total in lost
        if total in leaves and total not in metrics
    } | dict(metrics)


@attrs.define
class Tally:
    """Knows `totals`, the run's running sums so far; those of the plans that it remembers are among
    them.
    """

    taxonomy: Taxonomy
    totals: dict[str, float]
    _plans: dict[tuple[str, ...], Plan] = attrs.field(factory=dict)
    _last: Plan = NO_PLAN

    def reckon(self, leaves: Mapping[str, float], keys: tuple[str, ...]) -> Reckoned:
        """Roll up a row's leaves, with their keys. Raises MetricError as `compile_plan` and `roll`
        do.
        """
        plan = self._last if keys == self._last.keys else self._plans.get(keys)
        totals = self.totals
        if plan is None:
            plan = compile_plan(keys, totals, self.taxonomy)
            totals = {**plan.totals, **totals}
        return (*roll(leaves, totals, plan), plan)

    def keep(self, totals: dict[str, float], plan: Plan) -> bool:
        """Go on from a row that was written; True when its plan was a new one."""
        self.totals = totals
        if plan is self._last:
            return False
        self._last = plan
        if plan.keys in self._plans:
            return False
        if len(self._plans) >= _REMEMBERED_PLANS:
            self._plans.clear()
        self._plans[plan.keys] = plan
        return True
