"""What a budget keeps: overshoot, intervals, kills, and the time of a check.

- 1,000 simulated runs spend a budget by calls of lognormal cost, of which only earlier ones are
  known: one call at a time, and eight at the same time. The overshoot counts in largest calls.
- 90 % intervals of the next amount of lognormal series hold it.
- 1,000 processes that reserve and settle are killed with signal 9, four at a time: reserved and
  settled are compared with what the processes noted.
- microseconds of a check, with its reservation, and of a settlement.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import art_core as art
from art_core.budgets.account import BudgetAccount
from art_core.budgets.hold import hold, limited_by
from art_core.forecast.interval import of_next

KILLED = Path(__file__).parent.parent / "tests" / "faults" / "killed" / "budget_spend.py"
TARGETS = {
    "overshoot": 1.0,
    "overshoot_at_once": 1.0,
    "coverage_low": 0.88,
    "coverage_high": 0.92,
    "kills_wrong": 0,
    "check_us": 50.0,
}


def overshoot(seed: int, at_once: int) -> float:
    """Spend 10 dollars by calls of unknown price; return the overshoot in largest calls."""
    source = random.Random(seed)
    sigma = source.uniform(0.2, 1.2)
    terms = art.budget(usd=10, unknown_price_usd=0.5, warn=1)
    account, running, largest = BudgetAccount(terms), [], 0.0
    with limited_by(account):
        while True:
            try:
                while len(running) < at_once:
                    held = hold(None, "call", None, {})
                    running.append(held)
            except art.BudgetError:
                if not running:
                    break
            usd = source.lognormvariate(-2.5, sigma)
            largest = max(largest, usd)
            running.pop(source.randrange(len(running))).settle(usd)
    return max(0.0, account.spent - terms.usd) / largest


def coverage(seed: int) -> bool:
    """Return whether the 90 % interval of a series of steps holds its next amount."""
    source = random.Random(seed)
    sigma, length = source.uniform(0.1, 1.0), source.randrange(3, 60)
    amounts = [source.lognormvariate(0.0, sigma) for _ in range(length + 1)]
    interval = of_next(amounts[:-1])
    assert interval is not None
    return interval.low90 <= amounts[-1] <= interval.high90


def microseconds(directory: Path, calls: int = 10_000) -> tuple[float, float]:
    """Return the median microseconds of a check, which bounds and reserves a call in a file, and of
    settling it.
    """
    account = BudgetAccount(art.budget(usd=1e9, warn=1), directory / "speed.jsonl")
    rates = art.TokenRates(input_per_million=1.0, output_per_million=4.0)
    request = {"messages": [{"role": "user", "content": "x" * 1000}], "max_tokens": 100}
    checks, settlements = [], []
    with limited_by(account):
        for _ in range(calls):
            start = time.perf_counter()
            held = hold(None, "call", rates, request)
            middle = time.perf_counter()
            held.settle(0.001)
            settlements.append(time.perf_counter() - middle)
            checks.append(middle - start)
    return median(checks) * 1e6, median(settlements) * 1e6


def kills(directory: Path, number: int) -> dict[str, float]:
    """Kill processes; return what they noted against what the file holds."""
    command = [sys.executable, str(KILLED), str(directory), str(number), "4"]
    return json.loads(subprocess.check_output(command, text=True))


def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=1000)
    args = parser.parse_args()
    logging.getLogger("art_core").setLevel(logging.ERROR)  # each run warns at its end
    one = [overshoot(seed, 1) for seed in range(args.runs)]
    eight = [overshoot(seed, 8) for seed in range(args.runs)]
    covered = sum(coverage(seed) for seed in range(10 * args.runs)) / (10 * args.runs)
    with tempfile.TemporaryDirectory() as directory:
        check, settlement = microseconds(Path(directory))
        report = kills(Path(directory), args.kills)
    figures = {
        "overshoot": round(max(one), 3),
        "overshoot_at_once": round(max(eight), 3),
        "runs_over": sum(each > 0 for each in one),
        "runs_over_at_once": sum(each > 0 for each in eight),
        "coverage": round(covered, 4),
        "kills": report["kills"],
        "kills_wrong": report["wrong"],
        "kills_difference_usd": report["difference_after_opening"],
        "check_us": round(check, 1),
        "settle_us": round(settlement, 1),
    }
    held = {
        "overshoot": max(one) <= 1,
        "overshoot_at_once": max(eight) <= 1,
        "coverage": TARGETS["coverage_low"] <= covered <= TARGETS["coverage_high"],
        "kills_wrong": not report["wrong"] and report["difference_after_opening"] < 1e-6,
        "check_us": check <= TARGETS["check_us"],
    }
    for name, value in figures.items():
        verdict = "" if name not in held else "  held" if held[name] else "  MISSED"
        print(f"{name:24} {value:>12}{verdict}")
    line = {"name": "budget", "figures": figures, "targets": TARGETS}
    print(json.dumps(line | {"held": all(held.values())}))
    raise SystemExit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
