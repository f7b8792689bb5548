"""Training jobs: one at a time for a model, in the order in which they came, over restarts too."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import orjson

from art_core import BackendError, TrainableModel, TrajectoryGroup
from art_serverless.metrics import cost_leaves
from art_serverless.server.private import PrivatePaths
from art_serverless.server.seats import Seats
from art_serverless.server.store import Store, StoredJob
from art_serverless.wire import groups_of

log = logging.getLogger("art_serverless")

MOST_BEGUN = 3
"""How often a job is begun: one that takes the server down each time must not do so for ever."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
"""Between attempts to write to a store whose disk is full."""


class _StoppedError(Exception):
    """The server stops, and a job could not be recorded: the next server takes it up."""


@attrs.define(kw_only=True, eq=False)
class Work:
    """Runs jobs. `add` queues one; `listen(job_id)` is set when one tells something new."""

    store: Store
    seats: Seats
    private: PrivatePaths = attrs.field(factory=PrivatePaths)
    _queues: dict[str, asyncio.Queue[StoredJob]] = attrs.field(factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = attrs.field(factory=dict)
    _changed: dict[str, asyncio.Event] = attrs.field(factory=dict)
    _stopping: bool = False

    def resume(self) -> int:
        """Queue what an earlier server left behind; return how many jobs that are."""
        jobs = self.store.unfinished()
        for job in jobs:
            self.add(job)
        return len(jobs)

    def add(self, job: StoredJob) -> None:
        """Queue a job behind those of its model."""
        queue = self._queues.setdefault(job.model_id, asyncio.Queue())
        queue.put_nowait(job)
        if job.model_id not in self._tasks:
            self._tasks[job.model_id] = asyncio.create_task(self._run(job.model_id, queue))

    def busy(self, model_id: str) -> bool:
        """Tell whether a model has jobs that run or wait."""
        return model_id in self._tasks

    def listen(self, job_id: str) -> asyncio.Event:
        """Return what is set when the job tells something from now on."""
        event = self._changed.setdefault(job_id, asyncio.Event())
        if self._stopping:
            event.set()
        return event

    def wind_down(self) -> None:
        """Begin no new job, and have nobody wait for news any more."""
        self._stopping = True
        for event in self._changed.values():
            event.set()

    async def stop(self, grace_s: float) -> bool:
        """Begin no new job and wait for those under way; False when one was left in the middle."""
        self.wind_down()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return not left

    async def _run(self, model_id: str, queue: asyncio.Queue[StoredJob]) -> None:
        try:
            while not queue.empty() and not self._stopping:
                await self._next(queue.get_nowait())
        finally:
            self._tasks.pop(model_id, None)

    async def _next(self, job: StoredJob) -> None:
        """Run a job; whatever becomes of it, the jobs behind it run."""
        try:
            await self._job(job)
        except _StoppedError:
            log.warning("job %s is left to the next server", job.id)
        except Exception:
            log.exception("how job %s ended could not be recorded", job.id)

    async def _job(self, job: StoredJob) -> None:
        stored = self.store.model(job.model_id)
        if stored is None:  # deleted while the request came in
            await self._write(self.store.forget, job.id)
            return
        try:
            await self._begin(job)
            async with self.seats.using(stored) as model:
                metrics, step = await self._trained(job, model)
                spent = _spent(model)
            told = self.store.costs_told(stored.id)
            # Also what it cost between the steps: to be held until it was put to sleep, say.
            since = {key: round(usd - told.get(key, 0.0), 12) for key, usd in spent.items()}
            events: list[tuple[str, Mapping[str, Any]]] = [
                ("gradient_step", _told(metrics) | {k: usd for k, usd in since.items() if usd > 0}),
                ("training_ended", {"step": step}),
            ]
            await self._write(self.store.end, job.id, "ended", events, spent)
        except _StoppedError:
            raise
        except Exception as error:
            log.warning("job %s of %s failed: %s", job.id, stored.address.uri, error)
            said = self.private.hide_all(str(error)) or type(error).__name__
            failed = [("training_failed", {"error_message": said})]
            await self._write(self.store.end, job.id, "failed", failed)
        self._tell(job.id)

    async def _write(self, write: Callable[..., None], *values: Any) -> None:
        """Write to the store; a full disk is waited for. Raises _StoppedError when the server stops
        meanwhile.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return write(*values)
            except (sqlite3.OperationalError, OSError) as error:
                if self._stopping:
                    raise _StoppedError from error
                log.warning("the store cannot be written, tried again in %g s: %s", pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _begin(self, job: StoredJob) -> None:
        """Count a job before its model is loaded, which may end the server, too. One that has been
        trained is begun once more, to see whether its step is whole.
        """
        if job.begun >= MOST_BEGUN + (job.step_before is not None):
            raise _gave_up(job)
        await self._write(self.store.begin, job.id)

    async def _trained(
        self, job: StoredJob, model: TrainableModel
    ) -> tuple[Mapping[str, float], int]:
        """Run a job, or see that it ran before the server was cut off; return its metrics and the
        step that it made.
        """
        step = await model.get_step()
        if job.step_before is not None and step > job.step_before:
            # The step is whole: its checkpoint was written. Only the news of it was lost.
            last = model.run.history.last
            return last.metrics if last is not None and last.step == step else {}, step
        if job.begun >= MOST_BEGUN:
            raise _gave_up(job)
        await self._write(self.store.train, job.id, step)
        await self._write(self.store.tell, job.id, "training_started", {"num_sequences": 1})
        self._tell(job.id)
        groups = await asyncio.to_thread(self._groups, job.id)
        result = await model.train(groups, **job.config)
        return result.metrics, result.step

    def _groups(self, job_id: str) -> list[TrajectoryGroup]:
        return groups_of(orjson.loads(self.store.groups.of(job_id).read_bytes()))

    def _tell(self, job_id: str) -> None:
        event = self._changed.pop(job_id, None)
        if event is not None:
            event.set()


def _gave_up(job: StoredJob) -> BackendError:
    return BackendError(
        f"the server ended {job.begun} times while it ran this job",
        "Its log says why; one that was killed may have run out of memory.",
    )


def _told(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a client is told of a row: the step's own metrics, no sums of the run, finite values."""
    others = ("costs/", "reward/", "train/", "val/")
    return {
        key: float(value)
        for key, value in metrics.items()
        if "/cum/" not in key and math.isfinite(value) and not key.startswith(others)
    }


def _spent(model: TrainableModel) -> dict[str, float]:
    """What a model cost since it was registered, by leaf; rows carry the sums over their run."""
    last = model.run.history.last
    sums = last.metrics if last is not None else {}
    costs = {
        "costs/" + key.removeprefix("costs/cum/"): usd
        for key, usd in sums.items()
        if key.startswith("costs/cum/")
    }
    return {key: costs[key] for key in cost_leaves(costs)}
