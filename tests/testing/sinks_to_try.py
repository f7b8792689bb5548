"""Sinks that keep the contract: one on disk and one in memory."""

from __future__ import annotations

import json
from collections import defaultdict

import attrs

import art_core as art


@attrs.define
class FileSink:
    """Writes one line per row into the file `rows`, each row once."""

    path: object = None

    def open(self, run):
        self.path = run.run_dir / "rows"
        self.path.touch()

    def write(self, rows):
        seen = {line["seq"] for line in read(self.path)}
        with self.path.open("a") as file:
            for row in rows:
                if row.seq not in seen:
                    line = {"seq": row.seq, "step": row.step, "split": row.split}
                    file.write(json.dumps(line | {"metrics": row.metrics}) + "\n")

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
