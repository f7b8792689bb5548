"""Time to log a row: art-core's complete path and those of four other libraries, in one run.

Each library logs the same rows of 40 floats in its own process. They take turns of a few rows, so
that noise affects all of them. The floor is orjson and one write(2) of the same floats. Each rival
has an environment, `DIR/NAME`; `--install` creates the missing ones. A rival without one is taken
from the environment that runs this file. Rivals that are not installed are listed and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from rivals.environments import add_options, install, python_of
from rivals.pages import put
from row_cost import open_model, step_metrics

PAGE = "metrics.md"
WORKER = Path(__file__).parent / "rivals" / "logger.py"
FLOOR, OWN_FLOOR, OURS = "orjson + write", "the same of art-core's row", "art-core"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}


class Way(NamedTuple):
    """A way to log, as the worker names it, and where a row is when the call has returned."""

    name: str
    distribution: str
    module: str
    written: str


WAYS = {
    FLOOR: Way("orjson", "orjson", "orjson", "in the file"),
    OWN_FLOOR: Way("orjson", "orjson", "orjson", "in the file"),
    OURS: Way("art-core", "art-core", "art_core", "in the file"),
    "trackio": Way("trackio", "trackio", "trackio", "in a queue"),
    "W&B, offline": Way("wandb", "wandb", "wandb", "in a queue"),
    "openpipe-art": Way("openpipe-art", "openpipe-art", "art", "in the file"),
    "MLflow, files": Way("mlflow-files", "mlflow", "mlflow", "in the files"),
    "MLflow, SQLite": Way("mlflow-sqlite", "mlflow", "mlflow", "in the database"),
}
RIVALS = dict.fromkeys(w.distribution for w in WAYS.values() if w.name not in ("orjson", OURS))


class Worker:
    """A process that logs in one way."""

    def __init__(self, way: Way, python: str, directory: Path) -> None:
        directory.mkdir()
        others = {k: v for k, v in os.environ.items() if not k.startswith(("ART_", "WANDB_"))}
        self.way = way
        self.seconds: list[float] = []
        self.stderr = directory / "stderr.txt"
        self.process = subprocess.Popen(
            [python, WORKER.resolve(), way.name, way.distribution, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr.open("w"),
            env=others | QUIET,
            cwd=directory,
            text=True,
        )
        self.version: str = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            lines = self.stderr.read_text().strip().splitlines() or ["no message"]
            raise RuntimeError(f"{self.way.name} stopped with: {lines[-1]}")
        return json.loads(line)

    def log(self, rows: list[tuple[int, dict[str, Any]]]) -> list[float]:
        """Return the seconds of each row."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(rows) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Let it finish its run."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def own_row(base: Path) -> dict[str, Any]:
    """Return the row that art-core makes of 40 floats, with its parents, sums and own fields."""
    run = open_model(base, "own-row").run
    row = run.record("train", 1, metrics=step_metrics(1))
    run.close()
    return orjson.loads(row.to_line())


def compare(workers: dict[str, Worker], rounds: int, rows: int, row: dict[str, Any]) -> None:
    """Give each worker a few rows in turn; the first round, which warms up, does not count."""
    for turn in range(rounds + 1):
        steps = range(turn * rows, (turn + 1) * rows)
        given = [(step, step_metrics(step)) for step in steps]
        same = [(step, row) for step in steps]
        for name, worker in workers.items():
            seconds = worker.log(same if name == OWN_FLOOR else given)
            worker.seconds += seconds if turn else []


def markdown(workers: dict[str, Worker], microseconds: dict[str, float]) -> str:
    """Return the table for the docs."""
    lines = ["| way | median µs | over the floor | the row is then |", "|---|---|---|---|"]
    for name, us in sorted(microseconds.items(), key=lambda item: item[1]):
        way, version = workers[name].way, workers[name].version
        shown = name if way.name in ("orjson", OURS) else f"{name} ({way.distribution} {version})"
        lines.append(f"| {shown} | {us:,.1f} | {us / microseconds[FLOOR]:,.1f} | {way.written} |")
    return "\n".join(lines)


def measured(environments: Path, rounds: int, rows: int) -> dict[str, Worker]:
    """Return a finished worker for each way that is installed."""
    workers = {}
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        for n, (name, way) in enumerate(WAYS.items()):
            if python := python_of(way.distribution, way.module, environments):
                workers[name] = Worker(way, python, base / f"way-{n}")
        compare(workers, rounds, rows, own_row(base))
        for worker in workers.values():
            worker.stop()
    return workers


def figures_of(microseconds: dict[str, float]) -> dict[str, Any]:
    """Return medians, and what they are over the floors and the fastest rival."""
    ours, floor = microseconds[OURS], microseconds[FLOOR]
    rivals = [us for name, us in microseconds.items() if name not in (FLOOR, OWN_FLOOR, OURS)]
    return {
        "median_us": {name: round(us, 2) for name, us in microseconds.items()},
        "over_floor": {name: round(us / floor, 2) for name, us in microseconds.items()},
        "over_own_floor": round(ours / microseconds[OWN_FLOOR], 2),
        "over_fastest_rival": round(ours / min(rivals), 3) if rivals else None,
    }


def main() -> None:
    """Print a table, what is not installed, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100, help="rows a turn")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    args = parser.parse_args()
    if args.install:
        install(args.env, RIVALS)
    workers = measured(args.env, args.rounds, args.rows)
    microseconds = {n: statistics.median(w.seconds) * 1e6 for n, w in workers.items()}
    about = f"{args.rounds * args.rows:,} rows each, on {os.cpu_count()} cores"
    text = f"{markdown(workers, microseconds)}\n\nMade on {time.strftime('%Y-%m-%d')}: {about}."
    print(text)
    missing = [d for d in RIVALS if d not in {w.way.distribution for w in workers.values()}]
    for distribution in missing:
        print(f"not installed: {distribution} (python benchmarks/log_paths.py --install)")
    if args.write:
        put(PAGE, "log_paths.py", text)
    figures = figures_of(microseconds)
    targets = {"over_fastest_rival": 1.0}
    held = (figures["over_fastest_rival"] or 0.0) <= targets["over_fastest_rival"]
    figures["not_installed"] = missing
    print(json.dumps({"name": "log_paths", "figures": figures, "targets": targets, "held": held}))


if __name__ == "__main__":
    main()
