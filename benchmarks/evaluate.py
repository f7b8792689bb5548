"""Coverage of intervals, and errors of comparisons that stop early, against what they claim.

Simulated evaluations: scenarios of different difficulty, several attempts at each, rewards of 0 or
1. Coverage of the clustered 95 % interval over 10,000 evaluations; error rate of a comparison of
two equal models that is looked at after every scenario; the share of a fixed plan's attempts that a
comparison needs for a true difference, and how often each finds it.

    python benchmarks/evaluate.py            about ten seconds
"""

from __future__ import annotations

import json
import random

from art_core.evaluation.statistics import MIN_PAIRS, clustered, difference

SCENARIOS, REPEATS, PLANNED, SHIFT = 100, 4, 300, 0.15


def coverage(draw: random.Random, runs: int) -> float:
    hits = 0
    for _ in range(runs):
        attempts = {}
        for scenario in range(SCENARIOS):
            chance = draw.betavariate(2, 2)
            attempts[str(scenario)] = [float(draw.random() < chance) for _ in range(REPEATS)]
        found = clustered(attempts)
        hits += found.low <= 0.5 <= found.high
    return hits / runs


def pair(draw: random.Random, shift: float) -> float:
    chance = draw.betavariate(2, 2)
    better = draw.random() < min(1.0, chance + shift)
    return float(better) - float(draw.random() < chance)


def peeked(draw: random.Random, shift: float) -> tuple[str, int]:
    """Look after every pair; return the decision and the pairs that it took."""
    pairs: list[float] = []
    while len(pairs) < PLANNED:
        pairs.append(pair(draw, shift))
        if len(pairs) >= MIN_PAIRS and (side := difference(pairs, PLANNED).decided):
            return side, len(pairs)
    return "", PLANNED


def fixed(draw: random.Random, shift: float) -> bool:
    """Run the whole plan, look once."""
    found = clustered({str(n): [pair(draw, shift)] for n in range(PLANNED)})
    return found.low > 0 or found.high < 0


def main() -> None:
    draw = random.Random(0)
    covered = coverage(draw, 10_000)
    print(f"95 % intervals of {SCENARIOS} scenarios x {REPEATS} attempts cover: {covered:.2%}")
    trials = 1000
    errors = sum(bool(peeked(draw, 0.0)[0]) for _ in range(trials)) / trials
    print(f"equal models, looked at after every pair: {errors:.1%} of {trials} decided wrongly")
    found = [peeked(draw, SHIFT) for _ in range(trials)]
    power = sum(side == "a" for side, _ in found) / trials
    share = sum(count for _, count in found) / trials / PLANNED
    whole = sum(fixed(draw, SHIFT) for _ in range(trials)) / trials
    print(f"a true difference of about {SHIFT}: {share:.2f} of the plan, found in {power:.1%}")
    print(f"the fixed plan of {PLANNED} pairs finds it in {whole:.1%}")
    held = 0.94 <= covered <= 0.96 and errors <= 0.05 and share <= 0.6
    figures = {"coverage": covered, "errors": errors, "share": share, "power": power}
    targets = {"coverage": [0.94, 0.96], "errors": 0.05, "share": 0.6}
    print(json.dumps({"name": "evaluate", "figures": figures, "targets": targets, "held": held}))


if __name__ == "__main__":
    main()
