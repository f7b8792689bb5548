"""Measure the cost of a row: 40 metrics through taxonomy, builder, rollups, totals and the log.

The baseline is orjson plus one write(2) of the very same row. Both are timed in turns within one
process, so that the ratio holds on a noisy machine. Also measured: the same at row 100,000 as at
row 100; a row whose plan is not cached; a row with 800 cost leaves; opening a long run; `add_cost`
with 1,000 keys; and rows that each see 64 scenarios for the first time, with the growth from the
first 1,000 rows to the last 1,000 and the memory of the ids.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import art_core as art
from art_core.run.run import Run


def _names() -> tuple[str, ...]:
    names = [f"reward/outcome_{i}" for i in range(16)]
    names += [
        f"loss/{n}" for n in ("train", "entropy", "grad_norm", "learning_rate", "kl_k3", "kl_div")
    ]
    names += [
        "costs/gpu",
        "costs/train/judge/correct",
        "costs/train/judge/style",
        "costs/eval/judge",
    ]
    names += [f"time/step_{n}_s" for n in ("trainer", "actor", "wall")]
    names += [
        f"data/step_{n}"
        for n in ("trainer_tokens", "actor_tokens", "num_scenarios", "num_trajectories")
    ]
    names += [f"throughput/engine_{i}" for i in range(4)]
    return (*names, "train/own_a", "train/own_b", "train/own_c")


NAMES = _names()
assert len(NAMES) == 40


def step_metrics(step: int) -> dict[str, float]:
    """Return 40 metrics as a step of an agent's training has them."""
    return {name: 0.01 * i + step * 1e-6 for i, name in enumerate(NAMES)}


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_us(samples: list[float]) -> float:
    """Median in microseconds."""
    return statistics.median(samples) * 1e6


def compare(run: Run, floor_fd: int, rows: int) -> tuple[float, float]:
    """Median microseconds of (our row, the floor), in turns, over the next rows of the run."""
    import orjson

    ours: list[float] = []
    floor: list[float] = []
    for step in range(rows):
        metrics = step_metrics(step)
        ours.append(timed(lambda m=metrics, s=step: run.record("train", s, metrics=m)))
        row = run.history.last
        assert row is not None
        record = orjson.loads(row.to_line()) | {"recorded_at": row.recorded_at}
        floor.append(
            timed(
                lambda r=record: os.write(
                    floor_fd, orjson.dumps(r, option=orjson.OPT_APPEND_NEWLINE)
                )
            )
        )
    return median_us(ours), median_us(floor)


def uncached(run: Run, rows: int) -> float:
    """Median microseconds of a row whose plan is compiled anew: the benefit of the cache."""
    took: list[float] = []
    for step in range(rows):
        run.totals.clear_plans()
        metrics = step_metrics(step)
        took.append(timed(lambda m=metrics, s=step: run.record("train", s, metrics=m)))
    return median_us(took)


def wide_rows(run: Run, leaves: int, rows: int) -> float:
    """Median milliseconds of a row with many cost leaves."""
    metrics = {f"costs/train/tool_{i % 40}/call_{i}": 0.001 for i in range(leaves)}
    took = [timed(lambda s=s: run.record("train", s, metrics=metrics)) for s in range(rows)]
    run.close()
    return median_us(took) / 1e3


def add_cost_us(model: art.Model, keys: int, calls: int) -> float:
    """Microseconds of one add_cost, over many keys."""
    builder = model.metrics_builder("train")
    paths = [f"train/tool_{i}" for i in range(keys)]
    for path in paths:
        builder.add_cost(path, 0.0)

    def batch() -> None:
        for path in paths:
            builder.add_cost(path, 0.001)

    return median_us([timed(batch) for _ in range(calls // keys)]) / keys


def rows_of_new_scenarios(model: art.Model, rows: int, ids: int) -> tuple[float, float]:
    """Return how much longer the last 1,000 rows took than the first, and megabytes gained."""
    run, builder = model.run, model.metrics_builder("train")
    metrics, times = step_metrics(0), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(rows):
        builder.add_data(scenario_ids=[f"scenario-{step}-{i}" for i in range(ids)])
        times.append(timed(lambda s=step: run.record("train", s, metrics=metrics)))
    run.close()
    gained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    window = min(1_000, rows // 2)
    growth = statistics.median(times[-window:]) / statistics.median(times[:window])
    return growth, gained / 1024


def open_model(directory: Path, name: str) -> art.Model:
    """Open a run without sinks."""
    return art.Model(name=name, project="bench", base_path=directory, sinks=[])


def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=100_000, help="rows of the long run (default 100,000)"
    )
    parser.add_argument("--window", type=int, default=2_000, help="rows timed at either end")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        floor_fd = os.open(base / "floor.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        run = open_model(base, "row").run
        compare(run, floor_fd, 100)
        early, early_floor = compare(run, floor_fd, args.window)
        without_plans = uncached(run, 500)
        for step in range(max(0, args.rows - 2 * args.window - 100)):
            run.record("train", step, metrics=step_metrics(step))
            if sys.stderr.isatty() and step % 5000 == 0:
                print(f"\r{step} rows", end="", file=sys.stderr)
        late, late_floor = compare(run, floor_fd, args.window)
        run.close()

        def reopen() -> None:
            open_model(base, "row").run.close()

        reopened_ms = median_us([timed(reopen) for _ in range(5)]) / 1e3
        wide = wide_rows(open_model(base, "wide").run, 800, 100)
        cost = add_cost_us(open_model(base, "costs"), 1_000, 200_000)
        growth, gained = rows_of_new_scenarios(open_model(base, "scenarios"), args.rows, 64)
    figures = {
        "row_us": round(early, 2),
        "floor_us": round(early_floor, 2),
        "ratio": round(early / early_floor, 3),
        "ratio_without_plans": round(without_plans / early_floor, 1),
        "ratio_at_last_row": round(late / late_floor, 3),
        "growth": round((late / late_floor) / (early / early_floor), 3),
        "rows": args.rows,
        "reopen_ms": round(reopened_ms, 2),
        "leaves_800_ms": round(wide, 3),
        "add_cost_us": round(cost, 3),
        "new_scenarios_growth": round(growth, 3),
        "new_scenarios_mb": round(gained),
    }
    targets = {
        "ratio": 4.0,
        "ratio_at_last_row": 4.0,
        "growth": 1.15,
        "reopen_ms": 50,
        "leaves_800_ms": 0.3,
        "add_cost_us": 1.5,
        "new_scenarios_growth": 1.2,
    }
    held = {name: figures[name] <= limit for name, limit in targets.items()}
    for name, value in figures.items():
        limit = (
            f"  at most {targets[name]:<6} {'held' if held[name] else 'MISSED'}"
            if name in targets
            else ""
        )
        print(f"{name:20} {value:>12}{limit}")
    print(
        json.dumps(
            {"name": "row_cost", "figures": figures, "targets": targets, "held": all(held.values())}
        )
    )


if __name__ == "__main__":
    main()
