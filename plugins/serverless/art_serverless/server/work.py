"""Training jobs: the jobs of one model run one at a time, in order, also after a restart."""

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
from art_serverless.jobs import cost_leaves
from art_serverless.protocol import SFT
from art_serverless.server.private import PrivatePaths
from art_serverless.server.slots import ModelSlots
from art_serverless.server.store import Store, StoredJob
from art_serverless.wire import groups_of

log = logging.getLogger("art_serverless")

MAX_ATTEMPTS = 3
"""Attempts at one job. Without this limit, a job that ends the server would do so for ever."""
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 5.0
"""Pauses between attempts to write to a full disk."""


class _StoppedError(Exception):
    """The server stops and could not record the job; the next server runs it again."""


@attrs.define(kw_only=True, eq=False)
class Work:
    """Runs jobs. `add` queues a job; `listen` returns an event that is set when a job has news."""

    store: Store
    slots: ModelSlots
    private: PrivatePaths = attrs.field(factory=PrivatePaths)
    _queues: dict[str, asyncio.Queue[StoredJob]] = attrs.field(factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = attrs.field(factory=dict)
    _changed: dict[str, asyncio.Event] = attrs.field(factory=dict)
    _stopping: bool = False

    def resume(self) -> int:
        """Queue the unfinished jobs of an earlier server; return their number."""
        jobs = self.store.unfinished()
        for job in jobs:
            self.add(job)
        return len(jobs)

    def add(self, job: StoredJob) -> None:
        """Queue a job after the others of its model."""
        queue = self._queues.setdefault(job.model_id, asyncio.Queue())
        queue.put_nowait(job)
        if job.model_id not in self._tasks:
            self._tasks[job.model_id] = asyncio.create_task(self._run(job.model_id, queue))

    def busy(self, model_id: str) -> bool:
        """Return True if a model has jobs that run or wait."""
        return model_id in self._tasks

    def listen(self, job_id: str) -> asyncio.Event:
        """Return an event that is set when the job has new events, or the server stops."""
        event = self._changed.setdefault(job_id, asyncio.Event())
        if self._stopping:
            event.set()
        return event

    def wind_down(self) -> None:
        """Start no more jobs, and end all requests that wait for events."""
        self._stopping = True
        for event in self._changed.values():
            event.set()

    async def stop(self, grace_s: float) -> bool:
        """Start no more jobs and wait for the running ones. After `grace_s` cancel them and return
        False.
        """
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
        """Run a job. An error does not stop the jobs after it."""
        try:
            await self._job(job)
        except _StoppedError:
            log.warning("job %s is left to the next server", job.id)
        except Exception:
            log.exception("the end of job %s could not be recorded", job.id)

    async def _job(self, job: StoredJob) -> None:
        stored = self.store.model(job.model_id)
        if stored is None:  # the model was deleted while the request came in
            await self._write(self.store.delete_job, job.id)
            return
        try:
            await self._count_attempt(job)
            async with self.slots.using(stored) as model:
                metrics, step = await self._trained(job, model)
                spent = _spent(model)
            reported = self.store.reported_costs(stored.id)
            # This includes costs between the steps, such as those of a device that was held.
            since = {key: round(usd - reported.get(key, 0.0), 12) for key, usd in spent.items()}
            costs = {key: usd for key, usd in since.items() if usd > 0}
            events: list[tuple[str, Mapping[str, Any]]] = [
                ("gradient_step", _client_metrics(metrics) | costs),
                ("training_ended", {"step": step}),
            ]
            await self._write(self.store.end, job.id, "ended", events, spent)
        except _StoppedError:
            raise
        except Exception as error:
            log.warning("job %s of %s failed: %s", job.id, stored.address.uri, error)
            message = self.private.hide_all(str(error)) or type(error).__name__
            failed = [("training_failed", {"error_message": message})]
            await self._write(self.store.end, job.id, "failed", failed)
        self._notify(job.id)

    async def _write(self, write: Callable[..., None], *values: Any) -> None:
        """Write to the store, again and again while the disk is full. Raises _StoppedError if the
        server stops meanwhile.
        """
        pause_s = MIN_PAUSE_S
        while True:
            try:
                return write(*values)
            except (sqlite3.OperationalError, OSError) as error:
                if self._stopping:
                    raise _StoppedError from error
                log.warning("the store cannot be written, tried again in %g s: %s", pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _count_attempt(self, job: StoredJob) -> None:
        """Count an attempt before the model is loaded, since loading may end the server.

        A job that was trained gets one more attempt, to check whether its step is complete.
        """
        if job.attempts >= MAX_ATTEMPTS + (job.step_before is not None):
            raise _gave_up(job)
        await self._write(self.store.count_attempt, job.id)

    async def _trained(
        self, job: StoredJob, model: TrainableModel
    ) -> tuple[Mapping[str, float], int]:
        """Run a job, unless an earlier server completed it; return its metrics and its step."""
        step = await model.get_step()
        if job.step_before is not None and step > job.step_before:
            # The checkpoint was written, so the step is complete. Only its events were lost.
            last = model.run.history.last
            return last.metrics if last is not None and last.step == step else {}, step
        if job.attempts >= MAX_ATTEMPTS:
            raise _gave_up(job)
        await self._write(self.store.begin_training, job.id, step)
        await self._write(self.store.add_event, job.id, "training_started", {"num_sequences": 1})
        self._notify(job.id)
        groups = await asyncio.to_thread(self._groups, job.id)
        if SFT not in job.config:
            result = await model.train(groups, **job.config)
            return result.metrics, result.step
        train_sft = getattr(self.slots.backend, "train_sft", None)
        if train_sft is None:
            raise BackendError("the backend of this server has no supervised fine-tuning")
        result = await train_sft(model, [list(group) for group in groups], **job.config[SFT])
        await model.log(split="train", metrics=result.metrics, step=result.step)
        return result.metrics, result.step

    def _groups(self, job_id: str) -> list[TrajectoryGroup]:
        return groups_of(orjson.loads(self.store.groups.of(job_id).read_bytes()))

    def _notify(self, job_id: str) -> None:
        event = self._changed.pop(job_id, None)
        if event is not None:
            event.set()


def _gave_up(job: StoredJob) -> BackendError:
    return BackendError(
        f"the server ended {job.attempts} times while it ran this job",
        "Its log has the reason; one that was killed may have run out of memory.",
    )


def _client_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a row that clients get: those of the step itself, finite values."""
    others = ("costs/", "reward/", "train/", "val/")
    return {
        key: float(value)
        for key, value in metrics.items()
        if "/cum/" not in key and math.isfinite(value) and not key.startswith(others)
    }


def _spent(model: TrainableModel) -> dict[str, float]:
    """Return the costs of a model since it was registered, by leaf: the sums in its last row."""
    last = model.run.history.last
    sums = last.metrics if last is not None else {}
    costs = {
        "costs/" + key.removeprefix("costs/cum/"): usd
        for key, usd in sums.items()
        if key.startswith("costs/cum/")
    }
    return {key: costs[key] for key in cost_leaves(costs)}
