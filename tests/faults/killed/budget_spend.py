"""Spend from one budget file in several processes that are killed at random, and compare the
account with what the processes noted themselves.

`python budget_spend.py DIRECTORY KILLS AT_ONCE` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import art_core as art
from art_core.budgets.account import BudgetAccount
from art_core.budgets.tally import read_tally


def spend(file: Path, notes: Path, seed: int) -> None:
    """Reserve and settle for ever; note each change before it is made and when it is made."""
    source = random.Random(seed)
    account = BudgetAccount(art.budget(usd=1e6), file)
    written = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    held = []
    for number in range(10**9):
        usd = round(source.lognormvariate(-4, 1), 6)
        if held and source.random() < 0.5:
            taken = held.pop(source.randrange(len(held)))
            os.write(written, f"settle {taken[0]} {usd}\n".encode())
            account.settle(taken[1], usd)
        else:
            os.write(written, f"reserve {number} {usd}\n".encode())
            held.append((number, account.reserve("call", usd)))
        os.write(written, b"done\n")
        time.sleep(1e-4)  # else one of them has the lock all the time


def expected(notes: Path) -> tuple[list[float], list[float]]:
    """Return the amounts that a process has left reserved and those that it has settled, without
    and with the change that it was killed in, as two sums each.
    """
    reserved: dict[str, float] = {}
    settled: list[float] = []
    lines = notes.read_text().splitlines() if notes.exists() else []
    before = (0.0, 0.0)
    for line in lines:
        if line == "done":
            before = (sum(reserved.values()), sum(settled))
            continue
        what, number, usd = line.split()
        if what == "reserve":
            reserved[number] = float(usd)
        else:
            del reserved[number]
            settled.append(float(usd))
    after = (sum(reserved.values()), sum(settled))
    return [before[0], after[0]], [before[1], after[1]]


def found(file: Path) -> dict[str, tuple[float, float]]:
    """Return what the file's lines add up to for each process, by reading them plainly."""
    reserved: dict[str, float] = {}
    settled: dict[str, float] = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        if "reserve" in entry:
            reserved[entry["reserve"]] = entry["usd"]
        elif "settle" in entry:
            assert entry["settle"] not in settled, "settled twice"
            settled[entry["settle"]] = entry["usd"]
            del reserved[entry["settle"]]
    names = {key.split("-")[0] for key in (*reserved, *settled)}
    return {
        name: (
            sum(usd for key, usd in reserved.items() if key.startswith(name)),
            sum(usd for key, usd in settled.items() if key.startswith(name)),
        )
        for name in names
    }


def main() -> None:
    """Kill processes, then compare."""
    directory, kills, at_once = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    file, source = directory / "budget.jsonl", random.Random(1)
    running: list[tuple[int, Path]] = []
    begun = ended = 0
    while ended < kills:
        while len(running) < at_once and begun < kills:
            begun += 1
            notes = directory / f"notes-{begun}"
            pid = os.fork()
            if pid == 0:
                spend(file, notes, begun)
            running.append((pid, notes))
        pid, notes = running.pop(source.randrange(len(running)))
        while not notes.exists():
            time.sleep(0.001)
        time.sleep(source.uniform(0.0, 0.01))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ended += 1
    opened = BudgetAccount(art.budget(usd=1e6), file)
    opened.refresh()
    tally, plain = read_tally(file), found(file)
    assert tally is not None
    wanted = [expected(directory / f"notes-{n}") for n in range(1, kills + 1)]
    wrong = 0
    for reserved, settled in plain.values():
        fits = any(
            abs(reserved - r[way]) < 1e-9 and abs(settled - s[way]) < 1e-9
            for r, s in wanted
            for way in (0, 1)
        )
        wrong += not fits
    sums = [sum(amounts[place] for amounts in plain.values()) for place in (0, 1)]
    report = {
        "kills": kills,
        "processes_in_the_file": len(plain),
        "lines": file.read_bytes().count(b"\n"),
        "wrong": wrong,
        "reserved": tally.reserved,
        "settled": tally.settled,
        "difference": abs(tally.reserved + tally.settled - sum(sums)),
        "difference_after_opening": abs(opened.tally.reserved + opened.spent - sum(sums)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
