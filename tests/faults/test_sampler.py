"""After `kill -9` a sampler draws the scenarios that it would have drawn without the kill."""

from __future__ import annotations

import subprocess
import sys

import art_core as art
from art_core.data.store import read_groups, trajectory_file

STEPS = 4

# Rewards depend on the step, the scenario and the number of the attempt, so each run could be the
# same. One process forks the runs; a fork is killed in its n-th rollout, and another goes on.
RUNS = """
import asyncio, os, signal, sys
from collections import Counter
import art_core as art
from art_core.testing.echo import EchoBackend
base, steps = sys.argv[1], int(sys.argv[2])
POOL = [f"s{n}" for n in range(12)]

async def run(name, kill_at):
    backend, made = EchoBackend(), Counter()
    model = art.TrainableModel(
        name=name, project="p", base_model="echo", base_path=base, backend=backend, sinks=[]
    )
    await model.register(backend)
    sampler = art.ScenarioSampler(
        scenarios=POOL, run_dir=model.run_dir, groups=3, attempts=4, first=2, seed=5
    )

    async def rollout(scenario):
        step = await model.get_step()
        made[step, scenario] += 1
        if sum(made.values()) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        number, easy = made[step, scenario], int(scenario[1:]) % 3
        trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": scenario}])
        answer = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages()
        )
        trajectory.messages_and_choices.append(answer.choices[0])
        trajectory.reward = float(easy and (easy == 2 or (number + step) % 2))
        return trajectory

    for step in range(await model.get_step(), steps):
        await model.train(await sampler.gather(step, rollout, pbar_desc=None))
    await model.close()
    await backend.close()

def forked(name, kill_at=0):
    pid = os.fork()
    if not pid:
        asyncio.run(run(name, kill_at))
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])

assert forked("whole") == 0
for kill_at in (7, 29, 21):
    assert forked("killed", kill_at) == signal.SIGKILL
assert forked("killed") == 0
"""


def drawn(base, name):
    model = art.TrainableModel(name=name, project="p", base_model="echo", base_path=base, sinks=[])
    return [
        [
            (group.metadata["scenario_id"], group.rewards)
            for group in read_groups(trajectory_file(model.run_dir, "train", step))
        ]
        for step in range(1, STEPS + 1)
    ]


def test_a_killed_run_draws_what_it_would_have_drawn(tmp_path):
    command = [sys.executable, "-c", RUNS, str(tmp_path), str(STEPS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = drawn(tmp_path, "whole")
    assert drawn(tmp_path, "killed") == whole
    assert len({name for step in whole for name, _ in step}) > 3
