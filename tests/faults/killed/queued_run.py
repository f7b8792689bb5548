"""Kills the worker, the server and the trainer of a queue at random points; then all of them end:
`python queued_run.py DIRECTORY KILLS SEED`. The weights of the trained model are the attempts that
it was trained on, so that a checkpoint shows what was trained.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import openai.resources.chat.completions  # noqa: F401
import starlette.applications  # noqa: F401
import uvicorn  # noqa: F401

import art_core as art
import art_core.client.relay
import art_core.gateway.queue_routes
from art_core.backends import Checkpoint, Endpoint, TrainResult
from art_core.base.files import replace_json
from art_core.gateway.gateway import Gateway
from art_core.model.trainable import TrainableModel
from art_core.queue.queue import AttemptQueue
from art_core.queue.remote import RemoteQueue
from art_core.queue.values import Lease, Scenario
from art_core.queue.worker import QueueWorker

BASE, KILLS, SEED = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
KEY = "a-key-of-the-queue"
SCENARIOS, SIZE, LEASE_S, PATIENCE_S = 4, 2, 1.0, 120.0
FINISH, ACKNOWLEDGED = BASE / "finish", BASE / "acknowledged"
SERVED = Endpoint(base_url="http://127.0.0.1:9/v1", api_key="k", model_name="m")
events_out, events_in = os.pipe()


class Weights:
    """A backend whose checkpoint of a step is the list of the attempts that the step trained."""

    folder: Path
    now = 0

    async def register(self, model: TrainableModel, *, step: int | None = None) -> Endpoint:
        self.folder = model.run_dir / "checkpoints"
        for later in [each.step for each in await self.checkpoints(model)]:
            if step is not None and later > step:
                path = self.folder / f"{later}.json"
                path.rename(path.with_suffix(".abandoned"))
        self.now = max((c.step for c in await self.checkpoints(model)), default=0)
        return SERVED

    async def unregister(self, model: TrainableModel) -> None: ...

    async def train(self, model: Any, groups: Any, **_: Any) -> TrainResult:
        self.now += 1
        path = self.folder / f"{self.now}.json"
        trained = [
            {"scenario": group.metadata["scenario_id"], "keys": [t.metadata["key"] for t in group]}
            for group in groups
        ]
        replace_json(path, {"groups": trained})
        return TrainResult(
            step=self.now, metrics={"data/step_num_gradient_steps": 1.0}, checkpoint=path
        )

    async def step(self, model: TrainableModel) -> int:
        return self.now

    async def checkpoints(self, model: TrainableModel) -> list[Checkpoint]:
        found = sorted(int(path.stem) for path in self.folder.glob("*.json"))
        return [Checkpoint(step=step, path=self.folder / f"{step}.json") for step in found]

    async def delete_checkpoints(self, model: TrainableModel, keep: Any) -> list[int]:
        return []

    async def close(self) -> None: ...


def trained_model() -> TrainableModel:
    return art.TrainableModel(
        name="m", project="p", base_model="b", base_path=BASE, sinks=[],
        keep_checkpoints=art.keep_all(),
    )  # fmt: skip


def event() -> None:
    os.write(events_in, b".")


async def train(_: int) -> None:
    """Train until `finish` exists and each scenario is trained."""
    async with trained_model() as model:
        await model.register(Weights())
        step = await model.get_step()
        queue = AttemptQueue.open(model.run_dir, step=step, lease_s=LEASE_S, max_groups_ahead=24)
        async with queue:
            while True:
                counts = await queue.counts()
                if FINISH.exists():
                    await queue.fill([], size=SIZE, last=True)
                elif counts.waiting < SCENARIOS:
                    await queue.fill(epoch(counts.filled // SCENARIOS), size=SIZE)
                step = await model.get_step()
                batch = await queue.take(1, 3, step=step, wait_s=0.1)
                if batch.groups:
                    await model.train(batch.groups, cursor=batch.cursor)
                    await queue.commit(batch.cursor)
                    event()
                if batch.finished:
                    return


def epoch(number: int) -> list[Scenario]:
    return [Scenario(epoch=number, index=i, value=i, id=f"{number}/{i}") for i in range(SCENARIOS)]


async def serve(port: int) -> None:
    """Serve the queue until the process is killed."""
    run_dir = BASE / "p" / "models" / "m"
    queue = AttemptQueue.open(run_dir, lease_s=LEASE_S, max_groups_ahead=24)
    gateway = Gateway(
        SERVED, trainable=False, check_metrics=lambda _: None, port=port, api_key=KEY, queue=queue
    )
    gateway.start()
    while True:
        await asyncio.sleep(60)


async def work(port: int) -> None:
    """Make attempts until the queue is finished; some fail at the first try."""
    random.seed(os.getpid())
    with ACKNOWLEDGED.open("ab", buffering=0) as acknowledged:

        async def attempt(lease: Lease) -> art.Trajectory:
            await asyncio.sleep(random.random() * 0.01)
            if lease.attempt == 1 and random.random() < 0.1:
                raise ValueError("it fails")
            return art.Trajectory(reward=random.random(), metadata={"key": lease.key})

        def ended(lease: Lease, reply: str) -> None:
            if reply in ("accepted", "duplicate"):
                acknowledged.write(f"{lease.key}\n".encode())
                event()

        url = f"http://127.0.0.1:{port}"
        async with RemoteQueue(url, KEY, patience_s=PATIENCE_S, sleep=soon) as queue:
            worker = QueueWorker(
                queue=queue, attempt=attempt, name=f"{os.getpid()}", concurrent=3, ended=ended
            )
            await worker.run()


async def soon(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.05))


ROLES = {"trainer": train, "server": serve, "worker 1": work, "worker 2": work}


def started(role: str, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        asyncio.run(ROLES[role](port))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_for_events(wanted: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while wanted > 0 and select.select([events_out], [], [], max(0.0, end - time.monotonic()))[0]:
        wanted -= len(os.read(events_out, wanted))


def drain_events() -> None:
    while select.select([events_out], [], [], 0)[0]:
        os.read(events_out, 1 << 16)


def ended_well(pid: int, role: str) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise SystemExit(f"the {role} ended with {code}")


def main() -> None:
    chance = random.Random(SEED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = {role: started(role, port) for role in ROLES}
    kills: Counter[str] = Counter()
    for _ in range(KILLS):
        drain_events()
        wait_for_events(chance.randrange(0, 10), 5.0)
        time.sleep(chance.random() * 5e-3)
        role = chance.choice(sorted(ROLES))
        os.kill(running[role], signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(running[role], 0)[1])
        if code != -signal.SIGKILL:
            raise SystemExit(f"the {role} ended with {code}")
        kills[role.split()[0]] += 1
        running[role] = started(role, port)
    FINISH.touch()
    for role in ("trainer", "worker 1", "worker 2"):
        ended_well(running.pop(role), role)
    os.kill(running["server"], signal.SIGKILL)
    os.waitpid(running["server"], 0)
    print(json.dumps(kills))


main()
