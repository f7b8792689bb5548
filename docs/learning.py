"""Print what runs learned: the mean reward of their first and of their last quarter.

python docs/learning.py .art/art-e/models/art-e-001

The interval of the difference holds 95 %, with attempts clustered by scenario. Prints nothing for
an evaluation, and fails for a run whose interval does not lie above 0.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Sequence

import attrs

from art_core.forecast.interval import t_quantile
from art_core.log.reader import LoggedRun, find_run
from art_core.log.rundir import runs_path

Attempts = Sequence[tuple[str, float]]
"""The scenario and the reward of each attempt."""


@attrs.frozen
class Learning:
    """The mean rewards of the first and the last quarter of a run, and their difference."""

    first: float
    last: float
    low: float
    high: float

    def __str__(self) -> str:
        rise = f"{self.last - self.first:+.3f}, 95 % interval {self.low:.3f} to {self.high:.3f}"
        return f"first quarter {self.first:.3f}, last quarter {self.last:.3f}: {rise}"


def compared(first: Attempts, last: Attempts) -> Learning:
    """Compare rewards, clustered by scenario: one that is in both quarters is one cluster.

    With C clusters and the sums u of their attempts' residuals, each divided by the number of
    attempts of its quarter, the variance of the difference is C / (C - 1) * sum(u**2), as in
    `art_core.evaluation.statistics.clustered`.
    """
    means = [math.fsum(reward for _, reward in part) / len(part) for part in (first, last)]
    sums: dict[str, float] = defaultdict(float)
    for part, mean, sign in ((first, means[0], -1), (last, means[1], 1)):
        for scenario, reward in part:
            sums[scenario] += sign * (reward - mean) / len(part)
    clusters = len(sums)
    error = math.sqrt(clusters / (clusters - 1) * math.fsum(u * u for u in sums.values()))
    reach = t_quantile(0.975, clusters - 1) * error
    rise = means[1] - means[0]
    return Learning(*means, rise - reach, rise + reach)


def attempts_of(run: LoggedRun, steps: Sequence[int]) -> Attempts:
    """Return the attempts of steps; a group without a scenario is one of its own."""
    return [
        (str(group.metadata.get("scenario_id", (step, number))), reward)
        for step in steps
        for number, group in enumerate(run.groups(step))
        for reward in group.rewards
    ]


def learned(run: LoggedRun) -> Learning | None:
    """Compare the quarters of a run; None if it has fewer than four steps with rewards."""
    steps = run.steps()
    quarter = len(steps) // 4
    if not quarter:
        return None
    return compared(attempts_of(run, steps[:quarter]), attempts_of(run, steps[-quarter:]))


def described(run: LoggedRun, learning: Learning | None) -> str:
    """Return a line about a run: its name, steps and dollars, and what it learned."""
    usd = run.costs().total.get("all", 0)
    return f"{run.name}, {len(run.steps())} steps, ${usd:.4f}: {learning or 'too few to compare'}"


def main(names: Sequence[str]) -> int:
    """Print a line for each run; return 1 if one did not learn."""
    status = 0
    for run in (find_run(name, runs_path(None)) for name in names):
        learning = learned(run)
        print(described(run, learning))
        status |= learning is None or learning.low <= 0
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
