"""Disks that are full, tails that are torn, writes that are cut short or interrupted."""

from __future__ import annotations

import errno
import random
import shlex
import subprocess
import sys
from datetime import UTC, datetime

import pytest

import art_core as art
from art_core.base.errors import HistoryError
from art_core.log import history
from art_core.log.history import HistoryLog
from art_core.log.rows import read_rows

FULL = """
import asyncio, os, sys, time
import art_core as art
base, ballast = sys.argv[1], sys.argv[1] + "/ballast"

class Sink:
    def open(self, run): ...
    def close(self, run): ...
    def write(self, rows):
        taken.extend(row.seq for row in rows)

taken, logged, refused = [], [], 0
spec = art.SinkSpec(name="list", create=Sink, summary="")

async def main():
    global refused
    model = art.Model(name="m", project="p", base_path=base, sinks=[spec])
    builder = model.metrics_builder("train")
    groups = lambda: [art.TrajectoryGroup([
        art.Trajectory(messages_and_choices=[{"role": "user", "content": "x" * 500}], reward=r)
        for r in (0.0, 1.0)])]
    row = await model.log(groups(), split="train", step=1)
    logged.append(row.seq)
    disk = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(disk, bytes(4096)):
            pass
    except OSError:
        os.close(disk)
    while refused < 5:
        builder.add_cost("train/judge", 0.25)
        try:
            logged.append((await model.log(groups(), split="train", step=2)).seq)
        except (art.HistoryError, OSError) as error:
            refused += 1
            print("refused:", error, file=sys.stderr)
            builder.add_cost("train/judge", 0.25)
    os.unlink(ballast)
    row = await model.log(groups(), split="train", step=3)
    logged.append(row.seq)
    assert row.metrics["costs/cum/train/judge"] == 0.25 * (2 * refused + len(logged) - 2), row
    report = (await model.close())["list"]
    print(*logged, "|", *taken, "|", report.undelivered, report.error)

asyncio.run(main())
"""


def test_a_disk_that_is_full_refuses_rows_and_goes_on_when_space_returns(
    tmp_path, own_mounts, assert_right
):
    """On a real tmpfs of two megabytes: what was refused is in no row, what it cost is in one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"{shlex.join([sys.executable, '-c', FULL, str(disk)])} && cp -r {disk} {tmp_path}/kept"
    )
    done = own_mounts(f"mount -t tmpfs -o size=2m none {disk}", ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    logged, taken, report = done.stdout.split("|")
    assert done.stderr.count("refused:") == 5
    assert report.split() == ["0", "None"]
    rows = assert_right(tmp_path / "kept" / "p" / "models" / "m", map(int, logged.split()))
    assert [str(row.seq) for row in rows] == logged.split() == taken.split()


FULL_QUEUE = """
import asyncio, os, sys
from pathlib import Path
import art_core as art
from art_core.backends import Endpoint
from art_core.gateway.gateway import Gateway
from art_core.queue.queue import AttemptQueue
from art_core.queue.remote import RemoteQueue
from art_core.queue.values import Scenario
from art_core.queue.worker import QueueWorker
base, ballast, ATTEMPTS = Path(sys.argv[1]), Path(sys.argv[1], "ballast"), 24

async def attempt(lease):
    made.append(lease.key)
    text = f"{lease.scenario.index} " + "x" * 60_000
    return art.Trajectory(messages_and_choices=[{"role": "user", "content": text}], reward=1.0)

def fill_disk():
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return

async def emptied(seconds):
    pauses.append(seconds)
    if len(pauses) == 5:
        counts = await queue.counts()
        before.append((counts.ready, len(made)))
        ballast.unlink()
    await asyncio.sleep(0.05)

async def main():
    global queue
    async with AttemptQueue.open(base, step=0) as queue:
        scenarios = [Scenario(epoch=0, index=i, value=i) for i in range(ATTEMPTS)]
        await queue.fill(scenarios, size=1, last=True)
        endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", api_key="k", model_name="m")
        options = {"trainable": False, "check_metrics": lambda _: None, "queue": queue}
        with Gateway(endpoint, **options) as gateway:
            taking = asyncio.create_task(queue.take(ATTEMPTS, ATTEMPTS, step=0))
            await queue.counts()  # the take has begun, too
            fill_disk()
            async with RemoteQueue(gateway.url, gateway.api_key, sleep=emptied) as remote:
                worker = QueueWorker(queue=remote, attempt=attempt, name="w", concurrent=4)
                working = asyncio.create_task(worker.run())
                batch = await taking
                await queue.commit(batch.cursor)
                await working
    found = sorted(int(t.messages()[0]["content"].split()[0]) for g in batch.groups for t in g)
    assert found == list(range(ATTEMPTS)), found
    ready, begun = before[0]
    assert ready < ATTEMPTS, before  # the disk was full before all were stored
    assert len(made) == ATTEMPTS == worker.replies["accepted"], (len(made), worker.replies)
    print(ready, begun, len(pauses))

made, pauses, before = [], [], []
asyncio.run(main())
"""


def test_attempts_that_a_full_disk_refuses_are_kept_and_sent_again(tmp_path, own_mounts):
    """On a real tmpfs: nothing is acknowledged before it is stored, made twice, or lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-c", FULL_QUEUE, str(disk)]
    done = own_mounts(f"mount -t tmpfs -o size=4m none {disk}", command)
    assert done.returncode == 0, done.stderr
    assert "nothing of it was stored" in done.stderr


def row(seq, size=0):
    metrics = {"costs/gpu": 0.25, "x" * size + "/y": 1.0}
    given = {
        "attempt": 1,
        "split": "train",
        "recorded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "metrics": metrics,
    }
    return art.MetricsRow(seq=seq, step=seq, **given)


def test_a_tail_torn_at_any_byte_is_set_aside_and_the_rows_before_it_stay(tmp_path):
    whole, last = row(1).to_line() + row(2).to_line(), row(3).to_line()
    path = tmp_path / "history.jsonl"
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        log = HistoryLog.open(path)
        assert log.last == row(2)
        log.append(row(3))
        log.close()
        assert path.read_bytes() == whole + last
    torn = path.with_name("history.torn").read_bytes()
    assert torn == b"".join(last[:cut] + b"\n" for cut in range(1, len(last)))


@pytest.mark.parametrize(
    "tail",
    [b"\n", b"\n\n\0\0", b"\0" * 70_000, b"\r\n", b'\r\n{"seq":3,', b'{"seq":3,\r\n', b"[]\n"],
)
def test_a_tail_of_blanks_nul_bytes_or_another_systems_line_ends_loses_no_row(tmp_path, tail):
    path = tmp_path / "history.jsonl"
    path.write_bytes(row(1).to_line().replace(b"\n", b"\r\n") + row(2).to_line() + tail)
    log = HistoryLog.open(path)
    assert log.last == row(2)
    log.append(row(3))
    log.close()
    assert [r.seq for r, _ in read_rows(path)] == [1, 2, 3]


class Descriptor:
    """Takes what is written as a disk in trouble does: wholly, in part, not at all."""

    def __init__(self, real, seed):
        self.real, self.chance, self.troubles = real, random.Random(seed), 0

    def __call__(self, fd, data):
        fault = self.chance.choice(
            ["none", "short", "full", "EINTR", "EIO", "Ctrl-C", "late Ctrl-C"]
        )
        self.troubles += fault != "none"
        if fault == "none":
            return self.real(fd, data)
        if fault == "short":
            return self.real(fd, data[: self.chance.randrange(len(data))])
        if fault == "Ctrl-C":
            self.real(fd, data[: self.chance.randrange(len(data))])
            raise KeyboardInterrupt
        if fault == "late Ctrl-C":
            self.real(fd, data)
            raise KeyboardInterrupt
        code = {"full": errno.ENOSPC, "EINTR": errno.EINTR, "EIO": errno.EIO}[fault]
        raise OSError(code, fault)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_descriptor_does_a_row_is_there_once_or_not_at_all(
    tmp_path, monkeypatch, model_in, assert_right, seed
):
    model = model_in(tmp_path)
    disk = Descriptor(history.os.write, seed)
    monkeypatch.setattr(history.os, "write", disk)
    acknowledged = []
    for step in range(100):
        model.run.ledger.add("train", "costs/train/judge", 0.25)
        try:
            acknowledged.append(model.run.record("train", step, metrics={"costs/gpu": 0.5}).seq)
        except (HistoryError, KeyboardInterrupt):
            continue
    monkeypatch.undo()
    assert disk.troubles > 50
    last = model.run.record("train", 100)
    rows = assert_right(model.run_dir, acknowledged)
    # What no row took waits for the next one: nothing is lost, nothing is there twice.
    assert last.metrics["costs/cum/train/judge"] == 0.25 * 100
    assert last.metrics["costs/cum/gpu"] == 0.5 * (len(rows) - 1)
    model.run.close()


STORM = """
import random, signal, sys
import art_core as art
from art_core.log import history

# The first row starts the timer of the next sync, and Python says so when that is interrupted.
history.SYNC_SECONDS = 3600.0
run = art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[]).run
acknowledged, interrupted = [run.record("train", 0).seq], 0

class AlarmError(Exception): ...

def ring(*_):
    raise AlarmError

signal.signal(signal.SIGALRM, ring)
chance = random.Random(3)
for step in range(int(sys.argv[2])):
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4))
        run.ledger.add("train", "costs/train/judge", 0.25)
        acknowledged.append(run.record("train", step, metrics={"costs/gpu": 0.5}).seq)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except AlarmError:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
run.record("train", 0)
run.close()
print(interrupted, *acknowledged)
"""


def test_signals_that_interrupt_at_any_point_leave_rows_whole_and_sums_right(
    tmp_path, model_in, assert_right, trials
):
    """A handler that raises, as that of Ctrl-C does, some thousand times a second.

    In a process of its own: a tracer of this one would be interrupted inside its lock.
    """
    command = [sys.executable, "-c", STORM, str(tmp_path), str(50 * trials)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    interrupted, *acknowledged = map(int, done.stdout.split())
    rows = assert_right(model_in(tmp_path).run_dir, acknowledged)
    assert interrupted > trials
    assert len(rows) >= len(acknowledged) + 1
