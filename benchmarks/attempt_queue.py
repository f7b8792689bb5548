"""Measure the queue of attempts: 200 workers lease, wait for a second on average, and submit.

Measured is the 99th percentile of a submit: in the process, with a queue that is new and one that
has 100,000 attempts; over HTTP, with the workers in another process. The baseline is the other way
to store attempts, an append-only log: each submit is a line, all lines that wait are one write and
one sync. They are measured in turns within one process, with the same attempts, and the median over
four turns counts, so that one disturbed turn does not. Also measured: both without pauses between
attempts, SQLite with a commit of its own for each operation, and opening the queue again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import queue as queues
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import art_core as art
from art_core.backends import Endpoint
from art_core.gateway.gateway import Gateway
from art_core.queue import database, ready, slots
from art_core.queue.payload import outcomes_of, to_json
from art_core.queue.queue import AttemptQueue
from art_core.queue.remote import RemoteQueue
from art_core.queue.slots import Submission
from art_core.queue.values import Scenario

SIZE, TOKENS = 8, 100
CHUNK, TURNS = 1000, 4
Submit = Callable[[str, art.Trajectory], Awaitable[Any]]


def attempt() -> art.Trajectory:
    """Return an attempt of two turns, 100 tokens each."""
    content = [{"token": "word", "logprob": -0.123456789} for _ in range(TOKENS)]
    turn = {
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "word " * TOKENS},
        "prompt_token_ids": list(range(1000, 1000 + TOKENS)),
        "token_ids": list(range(TOKENS)),
        "logprobs": {"content": content},
    }
    asked = {"role": "user", "content": "word " * TOKENS}
    return art.Trajectory(messages_and_choices=[asked, turn, asked, turn], reward=1.0)


class AttemptLog:
    """The baseline: an append-only log of attempts, with the keys in memory."""

    def __init__(self, path: Path) -> None:
        self._keys: set[str] = set()
        self._fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._waiting: queues.SimpleQueue[tuple[bytes, Future[None]] | None] = queues.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    async def submit(self, key: str, trajectory: art.Trajectory) -> str:
        """Append an attempt."""
        if key in self._keys:
            return "duplicate"
        self._keys.add(key)
        stored = to_json(outcomes_of(trajectory))
        done: Future[None] = Future()
        self._waiting.put((b'{"key":"%b","outcome":%b}\n' % (key.encode(), stored[:-1]), done))
        await asyncio.wrap_future(done)
        return "accepted"

    def close(self) -> None:
        """Write what waits."""
        self._waiting.put(None)
        self._thread.join()
        os.close(self._fd)

    def _write(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while not self._waiting.empty() and (following := self._waiting.get()) is not None:
                batch.append(following)
            os.write(self._fd, b"".join(line for line, _ in batch))
            os.fdatasync(self._fd)
            for _, done in batch:
                done.set_result(None)


def p99_ms(seconds: list[float]) -> float:
    """Return the 99th percentile in milliseconds."""
    return statistics.quantiles(seconds, n=100)[98] * 1e3


def of_turns(turns: list[list[float]]) -> float:
    """Return the median over turns of their 99th percentiles, in milliseconds."""
    return statistics.median(map(p99_ms, turns))


async def worked(
    leased: Callable[[], Awaitable[str | None]],
    submit: Submit,
    workers: int,
    attempts: int,
    pause_s: float,
) -> tuple[list[float], float]:
    """Have workers make attempts; return the seconds of each submit, and the attempts a second."""
    took: list[float] = []
    chance, begun = random.Random(0), time.perf_counter()

    async def work() -> None:
        await asyncio.sleep(chance.random() * pause_s)
        while len(took) < attempts and (key := await leased()) is not None:
            await asyncio.sleep(chance.expovariate(1 / pause_s) if pause_s else 0)
            made, start = attempt(), time.perf_counter()
            await submit(key, made)
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(work() for _ in range(workers)))
    return took, len(took) / (time.perf_counter() - begun)


async def one_lease(queue: AttemptQueue | RemoteQueue) -> str | None:
    """Return the key of a lease."""
    leased = await queue.lease("w", 1, wait_s=5)
    return leased.leases[0].key if leased.leases else None


async def with_trainer(queue: AttemptQueue, working: Awaitable[tuple[list[float], float]]) -> Any:
    """Take and commit groups while workers make attempts."""

    async def train() -> None:
        while True:
            batch = await queue.take(1, 32, step=0)
            await queue.commit(batch.cursor)

    training = asyncio.create_task(train())
    try:
        return await working
    finally:
        training.cancel()


def many_attempts(db: sqlite3.Connection) -> None:
    """Make and train attempts as the queue does, in one commit, to save time."""
    outcomes = outcomes_of(attempt())
    for _, lease in slots.lease(db, "w", CHUNK, None, 300.0):
        slots.submit(db, Submission.of(lease.key, outcomes, 0), 3)
    newest = db.execute("select max(position) from groups").fetchone()[0]
    ready.commit(db, newest)


async def filled(queue: AttemptQueue, epoch: int, attempts: int) -> None:
    """Add scenarios for a number of attempts."""
    scenarios = [Scenario(epoch=epoch, index=i, value=i) for i in range(attempts // SIZE + 64)]
    await queue.fill(scenarios, size=SIZE)


def prepared(base: Path, attempts: int, window: int) -> None:
    """Write a queue that has trained attempts, unless it is there."""
    if (base / "queue").exists():
        return
    queue = AttemptQueue.open(base)
    asyncio.run(filled(queue, 0, attempts + 8 * window))
    for _ in range(attempts // CHUNK):
        queue._db.write(many_attempts).result()  # noqa: SLF001
    queue.close()


async def in_process(base: Path, late_base: Path, args: argparse.Namespace) -> dict[str, float]:
    """Measure an empty queue, one with many attempts, and the log, in turns."""
    late_queue = AttemptQueue.open(late_base)
    queue, log = AttemptQueue.open(base), AttemptLog(base / "attempts.jsonl")
    numbers = iter(range(10**9))

    async def next_key() -> str:
        return f"1-0-{next(numbers):024d}"

    turn = partial(worked, workers=args.workers, attempts=args.window // TURNS, pause_s=args.pause)
    flat_out = partial(worked, workers=args.workers, attempts=2 * args.window, pause_s=0)
    lease, late_lease = partial(one_lease, queue), partial(one_lease, late_queue)
    await filled(queue, 0, 8 * args.window)
    first: list[list[float]] = []
    late: list[list[float]] = []
    logged: list[list[float]] = []
    for _ in range(TURNS):
        first.append((await with_trainer(queue, turn(lease, queue.submit)))[0])
        late.append((await with_trainer(late_queue, turn(late_lease, late_queue.submit)))[0])
        logged.append((await turn(next_key, log.submit))[0])
    rate = (await with_trainer(queue, flat_out(lease, queue.submit)))[1]
    log_rate = (await flat_out(next_key, log.submit))[1]
    most, database.MAX_OPERATIONS = database.MAX_OPERATIONS, 1
    alone, alone_rate = await with_trainer(
        queue, worked(lease, queue.submit, args.workers, args.window // 2, 0)
    )
    database.MAX_OPERATIONS = most
    for each in (queue, late_queue, log):
        each.close()
    reopened = seconds_of(lambda: AttemptQueue.open(late_base, step=0).close())
    size = (late_base / "queue" / "queue.sqlite").stat().st_size
    return {
        "p99_ms": round(of_turns(first), 2),
        "log_p99_ms": round(of_turns(logged), 2),
        "ratio": round(of_turns(first) / of_turns(logged), 2),
        "p99_ms_after_many": round(of_turns(late), 2),
        "growth": round(of_turns(late) / of_turns(first), 2),
        "attempts": args.attempts,
        "median_ms": round(statistics.median(itertools.chain(*first)) * 1e3, 2),
        "median_ms_after_many": round(statistics.median(itertools.chain(*late)) * 1e3, 2),
        "per_second": round(rate),
        "log_per_second": round(log_rate),
        "one_commit_each_per_second": round(alone_rate),
        "one_commit_each_p99_ms": round(p99_ms(alone), 1),
        "reopen_ms": round(reopened * 1e3, 1),
        "mb_after_many": round(size / 2**20, 1),
        "log_mb_after_many": round(args.attempts * len(to_json(outcomes_of(attempt()))) / 2**20),
    }


def seconds_of(function: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


async def over_http(base: Path, args: argparse.Namespace) -> float:
    """Return the 99th percentile in milliseconds of a submit from another process."""
    queue = AttemptQueue.open(base)
    await filled(queue, 0, 2 * args.window)
    served = Endpoint(base_url="http://127.0.0.1:9/v1", api_key="k", model_name="m")
    gateway = Gateway(served, trainable=False, check_metrics=lambda _: None, queue=queue)
    with gateway:
        command = [sys.executable, __file__, "--work", gateway.url, gateway.api_key]
        command += [f"--workers={args.workers}", f"--window={args.window}", f"--pause={args.pause}"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        out, _ = await process.communicate()
    queue.close()
    return float(out)


async def work_elsewhere(url: str, key: str, args: argparse.Namespace) -> None:
    """Print the 99th percentile of a submit to a server."""
    async with RemoteQueue(url, key) as queue:
        lease = partial(one_lease, queue)
        found, _ = await worked(lease, queue.submit, args.workers, args.window, args.pause)
    print(p99_ms(found))


def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--window", type=int, default=2000, help="attempts that are timed")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds of an attempt")
    parser.add_argument("--attempts", type=int, default=100_000, help="attempts before the last")
    parser.add_argument("--prepared", metavar="DIR", help="keep the queue of many attempts there")
    parser.add_argument("--work", nargs=2, metavar=("URL", "KEY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        url, key = args.work
        asyncio.run(work_elsewhere(url, key, args))
        return
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        late = Path(args.prepared or base / "late")
        prepared(late, args.attempts, args.window)
        http = asyncio.run(over_http(base / "http", args))
        figures = {
            "http_p99_ms": round(http, 2),
            **asyncio.run(in_process(base / "new", late, args)),
        }
    targets = {"p99_ms": 50, "p99_ms_after_many": 50, "http_p99_ms": 50, "growth": 1.5}
    held = {name: figures[name] <= limit for name, limit in targets.items()}
    for name, value in figures.items():
        limit = f"  at most {targets[name]}" if name in targets else ""
        verdict = "" if name not in held else "  held" if held[name] else "  MISSED"
        print(f"{name:28} {value:>10}{limit}{verdict}")
    line = {"name": "attempt_queue", "figures": figures, "targets": targets}
    print(json.dumps(line | {"held": all(held.values())}))
    raise SystemExit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
