"""Sinks that keep the contract, one on disk and one in memory, and some that break it."""

from __future__ import annotations

import json
from collections import defaultdict

import attrs

import art_core as art


@attrs.define
class FileSink:
    """A line a row in `rows`, once each; `flaws` are ways to break the contract."""

    flaws: frozenset = frozenset()
    path: object = None

    def open(self, run):
        self.path = run.run_dir / "rows"
        self.path.touch()

    def write(self, rows):
        seen = {line["seq"] for line in read(self.path)} if "repeats" not in self.flaws else set()
        with self.path.open("a") as file:
            for row in rows:
                if row.seq not in seen:
                    file.write(json.dumps(self.line(row)) + "\n")

    def line(self, row):
        metrics = row.metrics
        if "ascii" in self.flaws:
            metrics = {k.encode("ascii", "replace").decode(): v for k, v in metrics.items()}
        if "parents" in self.flaws:
            metrics = {
                k: v for k, v in metrics.items() if not any(x.startswith(f"{k}/") for x in metrics)
            }
        step = row.step % 2**32 if "32 bits" in self.flaws else row.step
        return {"seq": row.seq, "step": step, "split": row.split, "metrics": metrics}

    def close(self, run):
        self.path.stat()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def file_sink():
    return art.SinkSpec(name="file", create=FileSink, summary="rows in a file")


ROWS = defaultdict(dict)


@attrs.define
class MemorySink:
    """Keeps metrics in a dict that outlives it: no splits, and no rows without metrics."""

    run_dir: object = None

    def open(self, run):
        self.run_dir = run.run_dir

    def write(self, rows):
        ROWS[self.run_dir] |= {row.seq: row for row in rows if row.metrics}

    def close(self, run):
        pass
