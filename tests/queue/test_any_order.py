"""Whatever workers and the trainer do, in whatever order, each scenario is trained once."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from art_core.log.history import MetricsRow
from art_core.queue.queue import AttemptQueue
from queued import FAILURE, Clock, attempt, scenarios

SCENARIOS, SIZE = 3, 2
ACTIONS = (
    *("lease", "submit") * 3,
    *("fail", "return", "pass time", "train", "die before the row", "die after the row", "restart"),
)


class Run:
    """A run whose trainer keeps what each step has trained."""

    def __init__(self, run_dir: Path) -> None:
        self.dir, self.clock, self.held = run_dir, Clock(), []
        self.trained, self.accepted, self.step = [], set(), 0
        self.queue = self.opened()

    def opened(self) -> AttemptQueue:
        return AttemptQueue.open(self.dir, step=self.step, lease_s=10, tries=1000, clock=self.clock)

    async def do(self, action: str, which: int) -> None:
        if action == "lease":
            self.held += await self.queue.lease("w", 1 + which % 4)
        elif action in ("submit", "fail", "return") and self.held:
            for lease in self.held[which % len(self.held) :][: 3 if action == "submit" else 1]:
                await self.end(action, lease)
        elif action == "pass time":
            self.clock.now += 6
        elif action in ("train", "die before the row", "die after the row"):
            await self.train(action)
        elif action == "restart":
            self.restart()

    async def end(self, action, lease) -> None:
        if action == "return":
            await self.queue.give_back(lease.key)
            return
        made = attempt() if action == "submit" else FAILURE
        if action == "submit":
            made.metadata["key"] = lease.key
        if await self.queue.submit(lease.key, made) == "accepted" and action == "submit":
            self.accepted.add(lease.key)

    async def train(self, action: str) -> None:
        batch = await self.queue.take(1, 2, step=self.step, wait_s=0)
        if not batch.groups:
            return
        if action != "die before the row":
            self.step += 1
            self.trained += batch.groups
            row = MetricsRow(
                seq=self.step, attempt=1, step=self.step, split="train",
                recorded_at=datetime.now(UTC), metrics={}, cursor=batch.cursor,
            )  # fmt: skip
            with (self.dir / "history.jsonl").open("ab") as file:
                file.write(row.to_line())
        if action == "train":
            await self.queue.commit(batch.cursor)
        else:
            self.restart()

    def restart(self) -> None:
        self.queue.close()
        self.queue = self.opened()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7)), min_size=15, max_size=40))
def test_each_accepted_attempt_is_trained_once_and_each_scenario_too(actions):
    with tempfile.TemporaryDirectory() as directory:
        run = asyncio.run(lived(Path(directory), actions))
    keys = [t.metadata["key"] for group in run.trained for t in group]
    assert len(keys) == len(set(keys))
    assert set(keys) == run.accepted
    assert [len(group) for group in run.trained] == [SIZE] * SCENARIOS
    assert sorted(group.metadata["index"] for group in run.trained) == list(range(SCENARIOS))


async def lived(directory: Path, actions) -> Run:
    """Do what is given, then what is left: every attempt, and training."""
    run = Run(directory)
    await run.queue.fill(scenarios(SCENARIOS), size=SIZE, last=True)
    for action, which in actions:
        await run.do(action, which)
    run.clock.now += 100
    await run.queue.counts()
    run.clock.now += 100
    while not (leased := await run.queue.lease("w", 9)).finished:
        for lease in leased:
            await run.end("submit", lease)
        await run.train("train")
        run.clock.now += 6
    run.queue.close()
    return run
