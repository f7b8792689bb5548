"""`art serve` under load: 200 chat clients at once on four models, trained meanwhile; no errors.

A server process with the local backend and a random model of half a million parameters; each client
asks for 8 tokens, waits for the answer and asks again. Every few seconds each model is trained a
step. Printed are requests a second, latencies, the server's memory, and how many failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2

import art_core as art

OPTIONS = {"device": "cpu", "dtype": "float32", "full_finetune": True, "progress": False}
TRAIN_EVERY_S = 5.0


async def client(
    http: httpx2.AsyncClient, url: str, name: str, until: float, seen: list[float], failed: Counter
) -> None:
    """Ask until the time is over."""
    question = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 8, "model": name}
    while time.monotonic() < until:
        started = time.perf_counter()
        try:
            answer = await http.post(f"{url}/chat/completions", json=question)
            if answer.status_code != 200:
                failed[f"{answer.status_code} {answer.text[:80]}"] += 1
        except httpx2.HTTPError as error:
            failed[type(error).__name__] += 1
        seen.append(time.perf_counter() - started)


async def trainer(model: art.TrainableModel, until: float) -> int:
    """Train a model every few seconds; return the steps."""

    async def rollout(seed: int) -> art.Trajectory:
        messages = [{"role": "user", "content": "a"}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
        )
        choice = completion.choices[0]
        share = sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / 8
        return art.Trajectory(messages_and_choices=[*messages, choice], reward=share)

    while time.monotonic() < until:
        groups = await art.gather_trajectory_groups(
            [art.TrajectoryGroup(rollout(seed) for seed in range(8))], pbar_desc=None
        )
        await model.train(groups, learning_rate=1e-3, mask_truncated=False)
        await asyncio.sleep(TRAIN_EVERY_S)
    return await model.get_step()


async def load(url: str, key: str, runs: Path, clients: int, models: int, seconds: float) -> dict:
    """Run clients and trainers; return the figures."""
    place = art.backend("serverless", base_url=url, api_key=key, progress=False)
    made = [
        art.TrainableModel(
            name=f"m{n}", project="load", base_model="tiny", base_path=runs, sinks=[]
        )
        for n in range(models)
    ]
    for model in made:
        await model.register(place)
    seen: list[float] = []
    failed: Counter[str] = Counter()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Authorization": f"Bearer {key}"}
    until = time.monotonic() + seconds
    async with httpx2.AsyncClient(limits=limits, headers=headers, timeout=120) as http:
        asking = [
            client(http, url, made[n % models].get_inference_name(), until, seen, failed)
            for n in range(clients)
        ]
        *_, steps = await asyncio.gather(
            *asking, asyncio.gather(*(trainer(model, until) for model in made))
        )
    for model in made:
        await model.close()
    await place.close()
    seen.sort()
    return {
        "requests": len(seen),
        "requests_per_s": round(len(seen) / seconds, 1),
        "p50_s": round(seen[len(seen) // 2], 3),
        "p99_s": round(seen[int(len(seen) * 0.99)], 3),
        "errors": dict(failed),
        "train_steps": steps,
    }


def resident_mib(pid: int) -> float:
    """Return a process's largest resident memory so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """Print the figures and last a line of JSON; 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    from art_local.testing.tiny import save_tiny_model

    key = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory() as folder:
        tiny = save_tiny_model(Path(folder) / "tiny")
        options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
        command = [sys.executable, "-m", "art_core", "serve", "--backend", "local", "--port", "0"]
        place = ["--dir", folder, "--base-model", f"tiny={tiny}"]
        server = subprocess.Popen(
            [*command, *options, *place],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ART_API_KEY": key},
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[3].rstrip(";")
            figures = asyncio.run(
                load(url, key, Path(folder), args.clients, args.models, args.seconds)
            )
            figures["server_peak_mib"] = round(resident_mib(server.pid))
        finally:
            server.terminate()
            server.wait(60)
    for name, value in figures.items():
        print(f"{name}: {value}")
    held = not figures["errors"]
    targets = {"errors": 0}
    print(json.dumps({"name": "serve_load", "figures": figures, "targets": targets, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
