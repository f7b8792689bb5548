"""After `kill -9` no acknowledged row is lost, no cost counted twice, no seq repeated."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import art_core as art
from art_core.log.rows import read_rows

COST = 0.25  # sums of quarters are exact

# One process makes all trials, each in a fork that opens the run, logs, and is killed at any point.
KILLS = """
import os, random, signal, sys, time
import art_core as art
base, trials = sys.argv[1], int(sys.argv[2])
art.Model(name="m", project="p", base_path=base, sinks=[])  # loads what each fork needs, once
random.seed(7)
for trial in range(trials):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(out)
        run = art.Model(name="m", project="p", base_path=base, sinks=[]).run
        while True:
            run.ledger.add("train", "costs/train/judge", 0.25)
            row = run.record("train", run.last_step + 1, metrics={"costs/gpu": 0.25})
            os.write(into, row.seq.to_bytes(8, "big"))
    os.close(into)
    wanted, acknowledged = random.randrange(0, 12), b""
    for _ in range(wanted):
        acknowledged = os.read(out, 8)
    time.sleep(random.random() * 1e-3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(out, 8):
        acknowledged = more
    os.close(out)
    print(int.from_bytes(acknowledged[-8:], "big"))
"""


@pytest.mark.timeout(1800)
def test_no_acknowledged_row_is_lost_and_no_money_is_counted_twice(tmp_path, trials):
    command = [sys.executable, "-c", KILLS, str(tmp_path), str(trials)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1700)
    acknowledged = [int(line) for line in done.stdout.split()]
    assert len(acknowledged) == trials
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    model.run.close()  # repairs the last kill's tail
    rows = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    assert max(acknowledged) <= len(rows) <= max(acknowledged) + trials
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert [row.step for row in rows] == [row.seq for row in rows]
    assert [row.attempt for row in rows] == sorted(row.attempt for row in rows)
    for row in rows:
        assert row.metrics["costs/cum/all"] == 2 * COST * row.seq
        assert row.metrics["costs/cum/train/judge"] == COST * row.seq
    print(f"{trials} kills, {len(rows)} rows, no acknowledged row lost")


# A row of a megabyte takes long enough to write that a kill falls into the write itself.
WIDE_KILLS = """
import os, random, signal, sys, time
import art_core as art
from art_core.log.history import MetricsRow
base, trials, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
art.Model(name="m", project="p", base_path=base, sinks=[])  # loads what each fork needs, once
random.seed(seed)
wide = {f"train/{'x' * 5_000}{n}": 0.5 for n in range(200)}
for trial in range(trials):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(out)
        run = art.Model(name="m", project="p", base_path=base, sinks=[]).run
        while True:
            row = run.record("train", run.last_step + 1, metrics={"costs/gpu": 0.25, **wide})
            os.write(into, row.seq.to_bytes(8, "big"))
    os.close(into)
    acknowledged = os.read(out, 8)
    time.sleep(random.random() * 5e-3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(out, 8):
        acknowledged = more
    os.close(out)
    print(int.from_bytes(acknowledged[-8:], "big"))
"""


@pytest.mark.timeout(1800)
def test_a_kill_while_a_row_of_a_megabyte_is_written_costs_that_row_at_most(
    tmp_path, trials, assert_right
):
    torn, batch, kills = 0, 10, max(10, trials // 4)
    for seed in range(0, kills, batch):
        base = tmp_path / "runs"
        command = [sys.executable, "-c", WIDE_KILLS, str(base), str(batch), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        acknowledged = [int(line) for line in done.stdout.split()]
        assert len(acknowledged) == batch
        model = art.Model(name="m", project="p", base_path=base, sinks=[])
        model.run.close()
        rows = assert_right(model.run_dir, acknowledged)
        assert len(rows) <= max(acknowledged) + batch
        assert all(len(row.metrics) > 200 for row in rows)
        aside = model.run_dir / "history.torn"
        torn += len(aside.read_bytes().splitlines()) if aside.exists() else 0
        shutil.rmtree(base)
    print(f"{kills} kills, {torn} of them in the middle of a row, no acknowledged row lost")


POINTS = {
    "before the row": ("art_core.log.history.HistoryLog.append", "before", 2),
    "after the row": ("art_core.log.history.HistoryLog.append", "after", 3),
    "before the sink": ("Sink.write", "before", 3),
    "after the sink": ("Sink.write", "after", 3),
    "before the cursor": ("art_core.sinks.delivery.save_cursor", "before", 3),
    "after the cursor": ("art_core.sinks.delivery.save_cursor", "after", 3),
    "before the status": ("art_core.run.run.write_status", "before", 3),
    "never": ("", "", 3),
}
CRASH = """
import importlib, os, sys, time
import art_core as art
from art_core.sinks.cursor import load_cursor
base, target, when = sys.argv[1:]

class Sink:
    def open(self, run): ...
    def close(self, run): ...
    def write(self, rows):
        with open(base + "/taken", "a") as file:
            file.writelines(f"{row.seq}\\n" for row in rows)

def crashing(real):
    def crash(*given):
        if when == "after":
            real(*given)
        os._exit(9)
    return crash

spec = art.SinkSpec(name="file", create=Sink, summary="")
model = art.Model(name="m", project="p", base_path=base, sinks=[spec])
for step in (1, 2):
    model.run.record("train", step, metrics={"costs/gpu": 0.25})
cursor = model.run_dir / "sinks" / "file.cursor"
while load_cursor(cursor).seq != 2:
    time.sleep(0.001)
if target == "Sink.write":
    Sink.write = crashing(Sink.write)
elif target:
    path, _, name = target.rpartition(".")
    try:
        owner = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, kind = path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    setattr(owner, name, crashing(getattr(owner, name)))
model.run.record("train", 3, metrics={"costs/gpu": 0.25})
model.run.close()
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_between_row_sink_and_cursor_costs_repeats_at_most(tmp_path, point):
    target, when, rows = POINTS[point]
    command = [sys.executable, "-c", CRASH, str(tmp_path), target, when]
    code = subprocess.run(command, capture_output=True, check=False, timeout=60).returncode
    assert code == (9 if target else 0)
    taken: list[int] = []

    class Sink:
        def open(self, run): ...

        def write(self, rows):
            taken.extend(row.seq for row in rows)

        def close(self, run): ...

    spec = art.SinkSpec(name="file", create=Sink, summary="")
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[spec])
    row = model.run.record("train", 3, metrics={"costs/gpu": 0.25})
    assert (row.seq, row.attempt) == (rows + 1, 2)
    assert row.metrics["costs/cum/all"] == 0.25 * (rows + 1)
    model.run.close()
    before = [int(seq) for seq in (tmp_path / "taken").read_text().split()]
    # In order, nothing missing, and what comes twice is what had no cursor yet.
    assert sorted({*before, *taken}) == list(range(1, rows + 2))
    assert taken == list(range(taken[0], rows + 2))
    assert len(before) + len(taken) <= rows + 2
