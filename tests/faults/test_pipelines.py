"""After `kill -9` a pipeline goes on: each scenario is trained in the row of one step, and what an
attempt paid is in the log once.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing

import pytest

import art_core as art
from art_core.data.store import read_groups, trajectory_file

SCENARIOS = 60

# One process makes all trials, each in a fork that goes on with the pipeline until it is killed.
KILLS = """
import asyncio, os, random, signal, sys, time
from pathlib import Path
import openai
import art_core as art
from art_core.pipelines import pipeline, workers
from art_core.testing.echo import EchoBackend
base, trials, scenarios = sys.argv[1], *map(int, sys.argv[2:])
workers.LEASE_S = pipeline.LEASE_S = 0.2
random.seed(11)

class Slow(EchoBackend):
    async def train(self, model, groups, **options):
        await asyncio.sleep(0.02)
        return await super().train(model, groups, **options)

@art.track_api_cost(
    source="judge", provider="openai", model_name="gpt-4.1",
    prompt_per_million=1000.0, completion_per_million=0.0,
)
def judged():
    return {"usage": {"prompt_tokens": 1000, "completion_tokens": 0}}

async def rollout(model, scenario):
    judged()
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": scenario}])
    await asyncio.sleep(random.random() * 0.03)
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages()
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = random.random()
    return trajectory

async def main():
    backend = Slow()
    model = art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=base, backend=backend, sinks=[]
    )
    await art.pipeline(
        model, [str(n) for n in range(scenarios)], rollout, attempts=2, min_batch_size=2,
        max_batch_size=3, max_concurrent=6, zero_variance="drop", progress=False,
    )
    await model.close()
    await backend.close()

for trial in range(trials + 1):
    pid = os.fork()
    if not pid:
        asyncio.run(main())
        os._exit(0)
    log, rows = Path(base, "p", "models", "m", "history.jsonl"), random.randrange(3)
    wanted = rows + (log.read_bytes().count(10) if log.exists() else 0)
    ended = 0
    while trial < trials and not ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if log.exists() and log.read_bytes().count(10) >= wanted:
            time.sleep(random.random() * 0.1)
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    if not ended:
        _, status = os.waitpid(pid, 0)
assert status == 0, status
"""


@pytest.mark.timeout(1800)
def test_each_scenario_is_trained_in_one_row(tmp_path, trials):
    numbers = (max(8, trials // 5), SCENARIOS)
    command = [sys.executable, "-c", KILLS, str(tmp_path), *map(str, numbers)]
    subprocess.run(command, check=True, timeout=1700)
    run = art.open_run(tmp_path / "p" / "models" / "m")
    rows = [row for row in run.rows(split="train") if "reward/mean" in row.metrics]
    trained: Counter[str] = Counter()
    for row in rows:
        groups = list(read_groups(trajectory_file(run.path, "train", row.step)))
        assert len(groups) == row.metrics["data/step_num_groups_submitted"]
        assert all(len(group.trajectories) == 2 for group in groups)
        trained.update(group.metadata["scenario_id"] for group in groups)
    assert trained == {str(n): 1 for n in range(SCENARIOS)}
    assert len({row.attempt for row in rows}) > 1
    assert rows[-1].metrics["data/cum/num_unique_scenarios"] == SCENARIOS
    with closing(sqlite3.connect(run.path / "queue" / "queue.sqlite")) as db:
        (paid,) = db.execute("select count(*) from paid").fetchone()
    assert paid >= 2 * SCENARIOS
    *_, last = run.rows()
    assert last.metrics["costs/cum/train/judge"] == paid  # a dollar for each stored attempt
