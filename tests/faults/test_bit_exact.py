"""A run that is killed anywhere and started again ends with the bits of one that was not killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "killed" / "main.py"
TRAINING = ("rollout", "train step", "checkpoint", "SFT", "evaluation")


@pytest.mark.torch
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_anywhere_ends_with_the_bits_of_one_that_was_not(
    tmp_path, trials, capsys
):
    pytest.importorskip("art_local")
    kills = 200 if trials >= 1000 else 2
    with capsys.disabled():
        found = killed(tmp_path, kills, "exact")
    assert found["held"], found
    assert found["figures"]["bits differing"] == 0
    by_phase = found["figures"]["by phase"]
    assert min(by_phase.get(phase, 0) for phase in TRAINING) >= kills // 10, by_phase


@pytest.mark.torch
@pytest.mark.timeout(3600)
def test_without_it_a_killed_run_gets_to_its_end_with_other_last_bits(tmp_path, trials, capsys):
    pytest.importorskip("art_local")
    if trials < 1000:
        pytest.skip("takes a minute")
    with capsys.disabled():
        found = killed(tmp_path, 10, "fast")
    # how many bits depends on which requests shared a batch
    assert found["figures"]["kills"] == 10


def killed(base: Path, kills: int, kind: str) -> dict[str, Any]:
    """Kill runs so many times, print the table, and return the figures."""
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(base), str(kills), kind]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3500, env=alone, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
