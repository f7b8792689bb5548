"""Sixth stop, with a memory: the run's totals, and the plans of its rows.

A row is reckoned first, and kept once it stands in the log: one that was not written changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from art_core.metrics.history import HistoryLog, read_rows
from art_core.metrics.rollup import NO_PLAN, Plan, compile_plan, roll
from art_core.metrics.taxonomy import Taxonomy

_REMEMBERED_PLANS = 256
Reckoned = tuple[dict[str, float], dict[str, float], Plan]
"""A row's metrics, the totals after it, and the plan that they were made by."""


def state_of(history: HistoryLog, taxonomy: Taxonomy) -> Mapping[str, float]:
    """Return what the log says of the run so far: its last row. Rows that ART wrote leave sums out,
    so that of those the newest value of each key counts.
    """
    if history.last is None or history.last.seq:
        return history.last.metrics if history.last else {}
    state: dict[str, float] = {}
    for row, _ in read_rows(history.path):
        state |= taxonomy.renamed(row.metrics, foreign=not row.seq)
    return state


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
