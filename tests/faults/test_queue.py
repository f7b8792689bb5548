"""After `kill -9` of workers, servers and trainers, each accepted attempt is trained once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from art_core.log.rows import read_rows

SCRIPT = Path(__file__).parent / "killed" / "queued_run.py"
SIZE, SCENARIOS = 2, 4


@pytest.mark.timeout(5400)
def test_no_accepted_attempt_is_lost_or_trained_twice_and_groups_are_whole(tmp_path, trials):
    trials = trials if trials >= 1000 else max(6, trials // 10)  # a second for each
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(trials), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5000)
    assert done.returncode == 0, done.stderr[-4000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert sum(kills.values()) == trials
    run = tmp_path / "p" / "models" / "m"
    steps = sorted(int(path.stem) for path in (run / "checkpoints").glob("*.json"))
    assert steps == list(range(1, len(steps) + 1))
    groups = [
        group
        for step in steps
        for group in json.loads((run / "checkpoints" / f"{step}.json").read_bytes())["groups"]
    ]
    trained = [key for group in groups for key in group["keys"]]
    accepted = set((tmp_path / "acknowledged").read_text().split())
    failed = failed_keys(run)
    assert max(Counter(trained).values()) == 1, "an attempt was trained twice"
    assert accepted - failed <= set(trained), "an accepted attempt was lost"
    assert {len(group["keys"]) for group in groups} == {SIZE}, "a group was not whole"
    scenarios = Counter(group["scenario"] for group in groups)
    epochs = len(scenarios) // SCENARIOS
    expected = {f"{epoch}/{index}" for epoch in range(epochs) for index in range(SCENARIOS)}
    assert scenarios == Counter(expected), "a scenario was not trained once in its epoch"
    rows = [row for row, _ in read_rows(run / "history.jsonl")]
    assert [row.step for row in rows if row.cursor is not None] == steps
    cursors = [row.cursor for row in rows if row.cursor is not None]
    assert cursors == sorted(set(cursors))
    print(
        f"{trials} kills ({kills}): {len(trained)} attempts trained once, {len(accepted - failed)} "
        f"of them acknowledged, {len(failed)} failed ones made again, {epochs} epochs, "
        f"{len(steps)} steps"
    )


def failed_keys(run: Path) -> set[str]:
    """Return the keys of attempts that failed and were made again."""
    with closing(sqlite3.connect(run / "queue" / "queue.sqlite")) as db:
        found = db.execute("select key from attempts where state = 'failed'").fetchall()
    return {key for (key,) in found}
