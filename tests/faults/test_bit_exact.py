"""A run that is killed anywhere and started again ends with the bits of one that was not killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Forks train with rollouts of the engine. Each is killed after a random time and another follows,
# until one gets to the end. The last checkpoint and the rows are compared with those of a fork
# that was not killed.
KILLS = '''
import asyncio, json, os, random, signal, sys, time
from pathlib import Path
import art_core as art
import art_core.hooks.host, art_core.model.trainable
import torch
from safetensors.torch import load_file
import huggingface_hub.hf_file_system, peft, starlette.applications, torch._dynamo, uvicorn
import art_local.backend, openai.resources.chat.completions
from art_local.testing.tiny import save_tiny_model

base, wanted_kills, exact = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exact"
STEPS, GROUPS, ATTEMPTS = 3, 2, 4
torch.set_num_threads(1)
tiny = save_tiny_model(base / "tiny")
jitter = random.Random(5)

async def rollout(model, step, number):
    await asyncio.sleep(random.random() * 0.02)  # other requests share its batch each time
    question = [{"role": "user", "content": "say " + "yes" * (number // ATTEMPTS + 1)}]
    answer = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=question, max_tokens=6 + number % 5,
        seed=1000 * step + number,
    )
    text = answer.choices[0].message.content
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    return art.Trajectory(
        messages_and_choices=[*question, answer.choices[0]], reward=sum(map(ord, text)) % 7 / 7
    )

async def life(directory):
    random.seed()
    backend = art.backend(
        "local", device="cpu", dtype="float32", lora_rank=4, progress=False,
        engine="transformers", deterministic=exact,
    )
    model = art.TrainableModel(name="m", project="p", base_model=str(tiny), base_path=directory,
                               sinks=[])
    await model.register(backend)
    for step in range(await model.get_step(), STEPS):
        groups = await art.gather_trajectory_groups(
            (art.TrajectoryGroup(
                rollout(model, step, ATTEMPTS * group + attempt) for attempt in range(ATTEMPTS)
            ) for group in range(GROUPS)),
            pbar_desc=None,
        )
        await model.train(groups, learning_rate=1e-2, mask_truncated=False)
    await model.close()
    await backend.close()

def lived(directory, seconds=None):
    """Return whether a fork got to the end; it is killed after so many seconds."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            asyncio.run(life(directory))
            code = 0
        except BaseException:
            __import__("traceback").print_exc()
        os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -9), status
    return status == 0

def bits(directory):
    """Return the bytes of what was trained, and the metrics of each step's last row."""
    run = directory / "p" / "models" / "m"
    stored = run / "checkpoints" / f"{STEPS:04d}"
    files = ("adapter_model", "optimizer", "rng")
    tensors = {
        f"{file} {name}": tensor.contiguous().view(-1).view(torch.uint8)
        for file in files for name, tensor in load_file(stored / f"{file}.safetensors").items()
    }
    rows = {}
    for line in (run / "history.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        rows[row["step"]] = {
            key: value for key, value in row.items()
            if not key.startswith(("time/", "throughput/"))
            and key not in ("seq", "attempt", "recorded_at", "reward/duration")
        }
    return tensors, rows

whole = base / "whole"
started = time.monotonic()
assert lived(whole)
wanted, rows = bits(whole)
seconds = time.monotonic() - started
total = sum(8 * len(value) for value in wanted.values())
all_kills = 0
while all_kills < wanted_kills:
    directory, kills = base / f"{all_kills}", 0
    while not lived(directory, jitter.uniform(0.2, 1) * seconds if kills < 3 else None):
        kills += 1
    all_kills += kills
    found, found_rows = bits(directory)
    assert found.keys() == wanted.keys()
    differing = sum(
        bin(a ^ b).count("1")
        for key in wanted for a, b in zip(wanted[key].tolist(), found[key].tolist())
    )
    other = [step for step in rows if rows[step] != found_rows.get(step)]
    print(json.dumps([kills, differing, total, other]), flush=True)
'''


@pytest.mark.torch
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_anywhere_ends_with_the_bits_of_one_that_was_not(tmp_path, trials):
    pytest.importorskip("art_local")
    wanted = 200 if trials >= 1000 else 2
    found = killed(tmp_path / "exact", wanted, "exact")
    assert report(found, "with") == 0
    assert [other for *_, other in found if other] == []
    if trials >= 1000:
        report(killed(tmp_path / "fast", 10, "fast"), "without")


def report(found, how):
    kills, bits = sum(kills for kills, *_ in found), sum(bits for _, bits, *_ in found)
    print(f"{how} deterministic=True: {kills} kills, {bits} bits of {found[0][2]} a run differ")
    return bits


def killed(base, kills, kind):
    base.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(base), str(kills), kind]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3500, env=alone, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
