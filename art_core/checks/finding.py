"""A problem that a rule found in the log of a run, and rules that plugins offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from art_core.checks.curves import RunCurves


@attrs.frozen(kw_only=True)
class Finding:
    """A problem of a run, with the step at which it began.

    - `problem` is a sentence with its `numbers`; `metric` is the curve that shows it.
    - `change` is what to change.
    - `until` is the last step at which the problem was there; None if it is there at the newest.
    - `usd` are the US dollars of the steps from `onset` on, up to `until`. The doctor adds it;
      None for a run without costs.
    """

    rule: str
    onset: int
    problem: str
    metric: str
    change: str
    numbers: Mapping[str, float] = attrs.field(factory=dict)
    until: int | None = None
    usd: float | None = None

    @property
    def heading(self) -> str:
        """The rule, the steps, and what they cost."""
        until = "" if self.until is None else f" to {self.until}"
        cost = "" if self.usd is None else f", ${self.usd:,.4f}"
        return f"{self.rule}: from step {self.onset}{until}{cost}"


@attrs.frozen(kw_only=True)
class CheckSpec:
    """A rule offered by a plugin: `check(curves)` returns the findings in the curves of a run.

    It reads `RunCurves` and nothing else, so that it works on a run that goes on, that was killed,
    or that ART wrote.
    """

    name: str
    check: Callable[[RunCurves], Iterable[Finding]]
    summary: str
