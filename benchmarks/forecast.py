"""Forecasts of 1,000 made-up runs, made at some step, against what the rest of each run cost.

The dollars of a step are lognormal: a judge by the call, attempts by the token, which grow along a
straight line in half of the runs, and a device by the hour. Evaluations come every few steps. The
intervals of the rest are read from the run's log, as `art forecast` does.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs

from art_core.forecast.forecast import forecast
from art_core.forecast.usage import read_usage
from art_core.log.history import MetricsRow
from art_core.log.reader import LoggedRun

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
LOW, HIGH = 0.88, 0.92


@attrs.frozen
class Nature:
    """What stays the same in a made-up run."""

    known: int
    steps: int
    every: int
    growth: float
    spread: float

    @classmethod
    def drawn(cls, source: random.Random) -> Nature:
        """Draw a run of which some steps are known."""
        known = source.randint(8, 80)
        return cls(
            known=known,
            steps=known + source.randint(5, 100),
            every=source.choice((5, 10)),
            growth=source.choice((0.0, source.uniform(0.0, 0.02))),
            spread=source.uniform(0.1, 0.5),
        )


def rows_of(nature: Nature, source: random.Random) -> list[MetricsRow]:
    """Make all rows of a run."""

    def drawn(mean: float) -> float:
        return mean * math.exp(nature.spread * source.gauss(0, 1))

    rows: list[MetricsRow] = []

    def log(step: int, split: str, usd: dict[str, float], others: dict[str, float]) -> None:
        costs = {f"costs/{path}": value for path, value in usd.items()}
        costs["costs/all"] = math.fsum(usd.values())
        at = BEGINS + timedelta(minutes=len(rows))
        rows.append(MetricsRow(len(rows) + 1, 1, step, split, at, costs | others))

    for step in range(1, nature.steps + 1):
        tokens = drawn(1e5 * (1 + nature.growth * step))
        usd = {"train/llm_judge": drawn(0.1), "train/tokens": tokens * 2e-6, "gpu": drawn(0.3)}
        log(step, "train", usd, {"reward/mean": 0.5, "data/step_actor_tokens": tokens})
        if step % nature.every == 0:
            log(step, "val", {"eval/llm_judge": drawn(1.0)}, {"val/reward": 0.5})
    return rows


def judged(nature: Nature, rows: list[MetricsRow], path: Path) -> dict[str, bool]:
    """Forecast the rest of a run from its first rows; return whether it lies in each interval."""
    known = [row for row in rows if row.step <= nature.known]
    path.write_bytes(b"".join(row.to_line() for row in known))
    usage = read_usage(LoggedRun(path.parent), lambda receipt: receipt.usd)
    found = forecast(usage, nature.steps)
    lines = {line.name: line.coming for line in found.lines}
    rest = rows[len(known) :]
    held = {}
    for name, key, line in (
        ("usd", "costs/all", "all"),
        ("tokens", "data/step_actor_tokens", "tokens sampled by the model"),
    ):
        whole, coming = math.fsum(row.metrics.get(key, 0.0) for row in rest), lines[line]
        held[f"{name}_90"] = coming.low90 <= whole <= coming.high90
        held[f"{name}_50"] = coming.low50 <= whole <= coming.high50
        held[f"{name}_90_{'growing' if nature.growth else 'steady'}"] = held[f"{name}_90"]
    return held


def main() -> None:
    """Print the shares, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="made-up runs (1,000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    inside: Counter[str] = Counter()
    count: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "made-up" / "models" / "a" / "history.jsonl"
        path.parent.mkdir(parents=True)
        for number in range(args.runs):
            source = random.Random(f"{args.seed} {number}")
            nature = Nature.drawn(source)
            held = judged(nature, rows_of(nature, source), path)
            inside.update({name: int(value) for name, value in held.items()})
            count.update(held.keys())
    figures = {name: round(inside[name] / count[name], 4) for name in sorted(count)}
    for name, share in figures.items():
        print(f"{name:20} {share:6.1%} of {count[name]} runs inside")
    targets = {"usd_90": [LOW, HIGH], "tokens_90": [LOW, HIGH]}
    held = all(low <= figures[name] <= high for name, (low, high) in targets.items())
    print(json.dumps({"name": "forecast", "figures": figures, "targets": targets, "held": held}))


if __name__ == "__main__":
    main()
