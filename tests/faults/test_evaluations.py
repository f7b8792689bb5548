"""After `kill -9` an evaluation has lost no finished attempt, and pays for none twice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import orjson
import pytest

import art_core as art
from art_core.log.rows import read_rows

COST = 0.25
SCENARIOS, REPEATS = 10, 4

# One process makes all trials, each in a fork that goes on with the evaluation until it is killed.
KILLS = """
import asyncio, os, random, signal, sys, time
import art_core as art
from art_core.evaluation.evaluate import evaluate
base, trials, scenarios, repeats = sys.argv[1], *map(int, sys.argv[2:])
art.Model(name="m", project="p", base_path=base, sinks=[])
random.seed(7)

async def rollout(model, scenario):
    with open(os.path.join(base, "paid"), "a") as paid:
        paid.write(scenario + "\\n")
    await judge()
    return art.Trajectory(reward=float(scenario))

@art.track_api_cost(source="judge", provider="x", model_name="j", prompt_per_million=0.25,
                    completion_per_million=0.25)
async def judge():
    await asyncio.sleep(0)
    return {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0}}

def once():
    model = art.Model(name="m", project="p", base_path=base, sinks=[])
    names = [str(n) for n in range(scenarios)]
    asyncio.run(evaluate(model, names, rollout, repeats=repeats, max_concurrent=3, progress=None))
    asyncio.run(model.close())

for trial in range(trials):
    pid = os.fork()
    if not pid:
        once()
        os._exit(0)
    time.sleep(random.random() * 0.04)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
for written in (True, False):
    pid = os.fork()
    if not pid:
        log = art.Model.log
        async def killed(*args, **kwargs):
            if written:
                await log(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        art.Model.log = killed
        once()
    os.waitpid(pid, 0)
once()
"""


@pytest.mark.timeout(1800)
def test_no_attempt_is_lost_and_none_is_paid_twice(tmp_path, trials):
    numbers = (max(10, trials // 5), SCENARIOS, REPEATS)
    command = [sys.executable, "-c", KILLS, str(tmp_path), *map(str, numbers)]
    subprocess.run(command, check=True, timeout=1700)
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    file = model.run_dir / "evaluations" / "val" / "0000.jsonl"
    lines = [line for line in file.read_bytes().splitlines() if line]
    entries = []
    for line in lines:
        try:
            entries.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue  # torn by a kill
    # The file holds one evaluation after the other: each is whole, and has each attempt once.
    plans = [n for n, entry in enumerate(entries) if "plan" in entry]
    rows = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    finished = 0
    for start, end in zip(plans, [*plans[1:], len(entries)], strict=True):
        attempts = [e["attempt"] for e in entries[start + 1 : end] if "attempt" in e]
        times = Counter((a["scenario"], a["repeat"]) for a in attempts)
        assert set(times.values()) <= {1}
        assert len(times) == SCENARIOS * REPEATS
        finished += 1
    assert len(rows) == finished
    assert rows[-1].metrics["costs/cum/all"] == pytest.approx(COST * SCENARIOS * REPEATS * finished)
    for row in rows:
        attempts = SCENARIOS * REPEATS
        assert row.metrics["costs/eval/judge"] == pytest.approx(COST * attempts)
        assert row.metrics["val/reward"] == pytest.approx((SCENARIOS - 1) / 2)
