"""Time and memory of a leaderboard: 100 runs of 10,000 rows with 63 metrics, 2.3 GB of logs.

Cold has no summaries, as logs that were copied from elsewhere: each row is read. cold_cpu_s is the
processor time of this, floor_cpu_s that of orjson.loads for the same rows, and cold_ratio the one
over the other. resumed_ratio is cold_cpu_s for logs whose second half is a later attempt that
repeats some steps, over cold_cpu_s. Killed is a board of runs that were killed: a run writes its
summary with each megabyte that it logs, so that at most the last one has to be read. Warm reads the
summaries; grown reads them after each log got 10 more rows. The targets in seconds are for a core
that nothing else uses: `load` is the load before. One run is logged and copied, since only the size
of the logs matters here.
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
from typing import Any

import orjson
from row_cost import open_model, step_metrics

from art_core.cli.main import main as art
from art_core.log.summary import read_summary
from art_core.metrics.taxonomy import builtin_taxonomy

MEGABYTE = 1 << 20


def make_runs(base: Path, runs: int, rows: int) -> None:
    """Log one run and copy it under the names of the others."""
    run = open_model(base, "run-000").run
    for step in range(rows):
        run.record("train", step, metrics=step_metrics(step) | {"reward/mean": step / rows})
    run.close()
    (run.info.run_dir / "summary.json").unlink()
    for n in range(1, runs):
        shutil.copytree(run.info.run_dir, run.info.run_dir.with_name(f"run-{n:03}"))


def leave_old_summaries(base: Path) -> None:
    """Leave beside each log the summary that it had a megabyte ago, as a killed run does."""
    logs = sorted(base.glob("*/models/*/history.jsonl"))
    whole = logs[0].read_bytes()
    logs[0].write_bytes(whole[: whole.rindex(b"\n", 0, max(len(whole) - MEGABYTE, 1024)) + 1])
    read_summary(logs[0], builtin_taxonomy())
    logs[0].write_bytes(whole)
    for log in logs[1:]:
        shutil.copy(logs[0].with_name("summary.json"), log.with_name("summary.json"))


def floor_cpu(base: Path) -> float:
    """Processor seconds of orjson.loads for each line of all logs."""
    start = time.process_time()
    for log in base.glob("*/models/*/history.jsonl"):
        with log.open("rb", buffering=1 << 17) as file:
            for line in file:
                orjson.loads(line)
    return time.process_time() - start


def grow(base: Path, rows: int) -> None:
    """Append rows to each log, as ten more steps would."""
    for log in base.glob("*/models/*/history.jsonl"):
        with log.open("rb") as file:
            row = orjson.loads(file.readline())
        with log.open("ab") as file:
            for n in range(10):
                file.write(orjson.dumps(row | {"step": rows + n, "reward/mean": 2.0}) + b"\n")


def resume(base: Path, rows: int) -> None:
    """Make the second half of each log a later attempt, which begins ten steps back."""
    half = rows // 2
    lines = min(base.glob("*/models/*/history.jsonl")).read_bytes().splitlines(keepends=True)
    records = [orjson.loads(line) for line in lines[half:]]
    later = [r | {"attempt": 2, "step": max(0, r["step"] - 10)} for r in records]
    whole = b"".join([*lines[:half], *(orjson.dumps(r) + b"\n" for r in later)])
    for log in base.glob("*/models/*/history.jsonl"):
        log.write_bytes(whole)


def forget(base: Path) -> None:
    """Take the summaries away."""
    for summary in base.glob("*/models/*/summary.json"):
        summary.unlink()


def seconds(base: Path, top: str, *options: str) -> float:
    """Seconds of one `art leaderboard`, which must show a best reward."""
    printed = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        assert art(["leaderboard", str(base), *options]) == 0
    taken = time.perf_counter() - start
    assert top in printed.getvalue(), printed.getvalue()
    return round(taken, 3)


def cold(base: Path, top: str) -> tuple[float, float]:
    """Seconds of one `art leaderboard` without summaries, and its processor time."""
    forget(base)
    before = time.process_time()
    taken = seconds(base, top)
    return taken, round(time.process_time() - before, 3)


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
        figures: dict[str, Any] = {
            "runs": args.runs,
            "rows": args.rows,
            "gigabytes": round(size / 1e9, 3),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        }
        figures["cold_s"], figures["cold_cpu_s"] = cold(base, top)
        floor = figures["floor_cpu_s"] = round(floor_cpu(base), 3)
        figures["cold_ratio"] = round(figures["cold_cpu_s"] / floor, 3)
        forget(base)
        leave_old_summaries(base)
        figures["killed_s"] = seconds(base, top)
        figures["warm_s"] = seconds(base, top)
        grow(base, args.rows)
        figures["grown_s"] = seconds(base, " 2 ")
        resume(base, args.rows)
        figures["resumed_ratio"] = round(cold(base, " 2 ")[1] / figures["cold_cpu_s"], 3)
    targets = {"cold_s": 10.0, "killed_s": 1.5, "warm_s": 0.3, "grown_s": 0.5}
    targets["resumed_ratio"] = 1.5
    held = {name: figures[name] <= limit for name, limit in targets.items()}
    for name, value in figures.items():
        limit = f"  at most {targets[name]}" if name in targets else ""
        limit += "" if held.get(name, True) else "  MISSED"
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
