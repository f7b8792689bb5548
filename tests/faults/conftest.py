"""Fixtures of the fault suite: the number of trials, and the assertions after every fault."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

import art_core as art
from art_core.log.rows import read_rows


@pytest.fixture
def trials() -> int:
    """The number of random trials: 1,000 in `make faults`, a tenth of it in CI."""
    return int(os.environ.get("FAULT_TRIALS") or (100 if os.environ.get("CI") else 20))


@pytest.fixture
def model_in() -> Callable[..., art.Model]:
    """Return a function that makes the model `m` of the project `p` in a directory."""

    def make(base: Path, **options: Any) -> art.Model:
        return art.Model(name="m", project="p", base_path=base, **{"sinks": []} | options)

    return make


@pytest.fixture
def assert_right() -> Callable[..., list[art.MetricsRow]]:
    """Return a function that reads a log and asserts what every fault leaves true: each line
    parses, the seqs are 1, 2, 3..., acknowledged rows are there, and every sum over the run is what
    an oracle adds up from the rows' own leaves. It returns the rows.
    """

    def check(run_dir: Path, acknowledged: Iterable[int] = ()) -> list[art.MetricsRow]:
        log = run_dir / "history.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        assert all(line.endswith(b"}\n") and orjson.loads(line) for line in lines)
        rows = [row for row, _ in read_rows(log)]
        assert [row.seq for row in rows] == list(range(1, len(lines) + 1))
        assert set(acknowledged) <= {row.seq for row in rows}
        assert [row.attempt for row in rows] == sorted(row.attempt for row in rows)
        spent: dict[str, list[float]] = {}
        for row in rows:
            for key, usd in row.metrics.items():
                if key.startswith("costs/") and "/cum/" not in key:
                    spent.setdefault(key.removeprefix("costs/"), []).append(usd)
            sums = {k: v for k, v in row.metrics.items() if k.startswith("costs/cum/")}
            assert sums == pytest.approx(
                {f"costs/cum/{key}": math.fsum(values) for key, values in spent.items()}
            )
        return rows

    return check


@pytest.fixture
def own_mounts() -> Callable[[str, Sequence[str]], subprocess.CompletedProcess[str]]:
    """Return a function that mounts by a shell command, runs one command there, and unmounts."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]

    def run(mount: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        try:
            subprocess.run([*alone, mount], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this machine lets nobody mount a file system")
        return subprocess.run(
            [*alone, f"{mount} && {shlex.join(command)}"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
