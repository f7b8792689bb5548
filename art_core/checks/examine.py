"""Runs all rules on the curves of a run; a rule that raises or is slow becomes a warning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import attrs

from art_core.base.errors import reason_of
from art_core.checks.curves import RunCurves
from art_core.checks.finding import CheckSpec, Finding

SLOW_S = 2.0


@attrs.frozen
class Examination:
    """The findings of all rules, by onset, and a warning by the name of each rule that raised or
    was slow.
    """

    findings: tuple[Finding, ...]
    warnings: Mapping[str, str]


def examine(
    curves: RunCurves,
    rules: Iterable[CheckSpec],
    *,
    slow_s: float = SLOW_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Examination:
    """Run rules one after the other. What a rule found that took longer than `slow_s` counts.

    A rule that raises, or returns something else than findings, has found nothing.
    """
    findings: list[Finding] = []
    warnings: dict[str, str] = {}
    for rule in rules:
        began = clock()
        try:
            made = [_checked(finding) for finding in rule.check(curves)]
        except Exception as error:
            warnings[rule.name] = f"the rule {rule.name!r} is left out: {reason_of(error)}"
            continue
        if (seconds := clock() - began) > slow_s:
            took = f"took {seconds:.1f} s (limit {slow_s:g} s)"
            warnings[rule.name] = f"the rule {rule.name!r} {took}"
        findings += (attrs.evolve(f, usd=curves.spent(f.onset, f.until)) for f in made)
    return Examination(tuple(sorted(findings, key=lambda f: (f.onset, f.rule))), warnings)


def _checked(finding: Finding) -> Finding:
    if not isinstance(finding, Finding):
        raise TypeError(f"{finding!r:.80} is not a Finding")
    return finding
