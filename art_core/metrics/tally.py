"""Sixth stop, with a memory: the run's totals, and the plans of its rows.

A row is reckoned first, and kept once it stands in the log: one that was not written changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from art_core.metrics.rollup import NO_PLAN, Plan, compile_plan, roll
from art_core.metrics.taxonomy import Taxonomy

_REMEMBERED_PLANS = 256


@attrs.define
class Reckoned:
    """A row's metrics, the totals after it, and the plan that they were made by."""

    metrics: dict[str, float]
    totals: dict[str, float]
    keys: tuple[str, ...]
    plan: Plan


@attrs.define
class Tally:
    """Knows `totals`, the run's running sums so far; the totals of a plan in `_plans` are among
    them.
    """

    taxonomy: Taxonomy
    totals: dict[str, float]
    _plans: dict[tuple[str, ...], Plan] = attrs.field(factory=dict)
    _last: Plan = NO_PLAN
    _last_keys: tuple[str, ...] = ()

    def reckon(self, leaves: Mapping[str, float]) -> Reckoned:
        """Roll up a row's leaves. Raises MetricError as `compile_plan` and `roll` do."""
        keys = tuple(leaves)
        plan = self._last if keys == self._last_keys else self._plans.get(keys)
        totals = self.totals
        if plan is None:
            plan = compile_plan(keys, totals, self.taxonomy)
            totals = {**plan.totals, **totals}
        return Reckoned(*roll(leaves, totals, plan), keys, plan)

    def keep(self, row: Reckoned) -> bool:
        """Go on from a row that was written; True when it may have had a new total."""
        self.totals = row.totals
        if row.plan is self._last:
            return False
        new = row.keys not in self._plans
        if new:
            if len(self._plans) >= _REMEMBERED_PLANS:
                self._plans.clear()
            self._plans[row.keys] = row.plan
        self._last, self._last_keys = row.plan, row.keys
        return new
