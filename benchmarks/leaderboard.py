"""What a leaderboard costs: 100 runs of 10,000 rows with 63 metrics, 2.3 GB of logs.

Cold reads every row, in as many processes as there are cores; warm reads the summaries that the
first time left beside the logs; grown, the same after each log got 10 more rows. cold_cpu_s is what
cold took of all cores together: on a busy machine, more telling than its seconds. One run is made
by the logger and copied, since only the size of the logs matters here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import orjson
from row_cost import open_model, step_metrics

from art_core.cli.main import main as art

TARGET_S = 3.0


def make_runs(base: Path, runs: int, rows: int) -> None:
    """Log one run and copy it under the names of the others."""
    run = open_model(base, "run-000").run
    for step in range(rows):
        run.record("train", step, metrics=step_metrics(step) | {"reward/mean": step / rows})
    run.close()
    for n in range(1, runs):
        shutil.copytree(run.info.run_dir, run.info.run_dir.with_name(f"run-{n:03}"))


def grow(base: Path, rows: int) -> None:
    """Append rows to each log, as ten more steps would."""
    for log in base.glob("*/models/*/history.jsonl"):
        with log.open("rb") as file:
            row = orjson.loads(file.readline())
        with log.open("ab") as file:
            for n in range(10):
                file.write(orjson.dumps(row | {"step": rows + n, "reward/mean": 2.0}) + b"\n")


def seconds(base: Path, top: str) -> float:
    """Seconds of one `art leaderboard`, which must show a best reward."""
    printed = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        assert art(["leaderboard", str(base)]) == 0
    taken = time.perf_counter() - start
    assert top in printed.getvalue(), printed.getvalue()
    return round(taken, 3)


def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        make_runs(base, args.runs, args.rows)
        size = sum(path.stat().st_size for path in base.glob("*/models/*/history.jsonl"))
        top = format((args.rows - 1) / args.rows, ".4g")
        figures = {
            "runs": args.runs,
            "rows": args.rows,
            "gigabytes": round(size / 1e9, 3),
        }
        before = sum(os.times()[:4])
        figures["cold_s"] = seconds(base, top)
        figures["cold_cpu_s"] = round(sum(os.times()[:4]) - before, 3)
        figures["warm_s"] = seconds(base, top)
        grow(base, args.rows)
        figures["grown_s"] = seconds(base, " 2 ")
    targets = {"warm_s": TARGET_S, "grown_s": TARGET_S}
    held = {name: figures[name] <= limit for name, limit in targets.items()}
    for name, value in figures.items():
        limit = f"  at most {targets[name]}" if name in targets else ""
        print(f"{name:20} {value:>12}{limit}")
    print(f"cold reads {figures['gigabytes'] / figures['cold_s']:.2f} GB/s", file=sys.stderr)
    print(
        json.dumps(
            {
                "name": "leaderboard",
                "figures": figures,
                "targets": targets,
                "held": all(held.values()),
            }
        )
    )


if __name__ == "__main__":
    main()
