"""A registered model at the service: its training steps, one at a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from art_core import BackendError, GpuTime, MetricError, TrainResult, TrajectoryGroup
from art_core.base.files import read_json, replace_json
from art_serverless.api import Api, ModelRecord, NotFoundError
from art_serverless.jobs import JobFailedError, JobResult, costs_of, follow, metrics_of

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_serverless")
JOURNAL = "serverless.json"


class Submit(Protocol):
    """Sends a job to the service under an idempotency key; returns the job's id."""

    async def __call__(self, *, key: str) -> str:
        """Send the job."""
        ...


@attrs.frozen(kw_only=True)
class StepOptions:
    """Options of training steps (see `ServerlessBackend`)."""

    cost_per_hour_usd: float | None
    stall_timeout_s: float
    progress: bool


@attrs.define(kw_only=True, eq=False)
class RemoteModel:
    """A model at the service, and the step of its newest weights. `step_lock` admits one training
    step at a time; the journal records it.
    """

    api: Api
    options: StepOptions
    record: ModelRecord
    journal: Journal
    step_lock: asyncio.Lock
    step: int = 0

    async def resume(self, model: TrainableModel) -> None:
        """Read the newest step from the service, and complete a step of an earlier process: wait
        for its job and log its row.
        """
        async with self.step_lock:
            self.step = await self.api.newest_step(self.record.id)
            await self._finish_pending(model)

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], options: dict[str, Any]
    ) -> TrainResult:
        """Run a step at the service and wait for it; a step under way is completed first."""
        return await self._run(model, partial(self.api.submit, self.record.id, groups, options))

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[TrajectoryGroup], options: dict[str, Any]
    ) -> TrainResult:
        """Run a step of supervised fine-tuning as `train` runs one; each group is a batch."""
        submit = partial(self.api.submit_sft, self.record.id, batches, options)
        return await self._run(model, submit)

    async def _run(self, model: TrainableModel, submit: Submit) -> TrainResult:
        async with self.step_lock:
            await self._finish_pending(model)
            pending = Pending.new(self.record.id, self.step + 1)
            self.journal.write(pending)
            pending = await self._submitted(pending, submit)
            return await self._followed(model, pending)

    async def _submitted(self, pending: Pending, submit: Submit) -> Pending:
        try:
            job_id = await submit(key=pending.key)
        except Exception as error:
            if not isinstance(error, BackendError) or isinstance(error, NotFoundError):
                self.journal.write(None)  # the request was rejected, or never sent
                raise
            # The answer was lost, or is a proxy's. Only the service knows whether the job exists.
            found = await self.api.find_job(self.record.id, pending.key)
            if found is None:
                raise
            job_id = found
        pending = attrs.evolve(pending, job_id=job_id)
        self.journal.write(pending)
        return pending

    async def _followed(self, model: TrainableModel, pending: Pending) -> TrainResult:
        assert pending.job_id is not None
        try:
            job = await follow(
                self.api,
                pending.job_id,
                stall_timeout_s=self.options.stall_timeout_s,
                progress=self.options.progress,
                label=f"train step {pending.step}",
            )
        except (JobFailedError, NotFoundError):
            self.journal.write(None)
            raise
        step = job.ended.get("step")
        self.step = int(step) if step is not None else await self.api.newest_step(self.record.id)
        metrics = metrics_of(job, model.plugins.taxonomy())
        # A job that is found again has sent its events already: take the time that it reports.
        self._charge(model, job, max(job.seconds, metrics["time/step_trainer_s"]))
        self.journal.write(None)
        return TrainResult(step=self.step, metrics=metrics)

    async def _finish_pending(self, model: TrainableModel) -> None:
        pending = self.journal.read()
        if pending is None or pending.model_id != self.record.id:
            return
        job_id = pending.job_id or await self.api.find_job(pending.model_id, pending.key)
        if job_id is None:
            log.warning(
                "step %d of %r was sent, and the service has no job for it; it is at step %d",
                *(pending.step, model.name, self.step),
            )
            self.journal.write(None)
            return
        log.warning("step %d of %r was under way; waiting for it", pending.step, model.name)
        try:
            result = await self._followed(model, attrs.evolve(pending, job_id=job_id))
        except (JobFailedError, NotFoundError) as error:
            log.warning("step %d of %r failed meanwhile: %s", pending.step, model.name, error)
            return
        await model.log(split="train", metrics=result.metrics, step=result.step)

    def _charge(self, model: TrainableModel, job: JobResult, seconds: float) -> None:
        price = self.options.cost_per_hour_usd
        if price is not None:
            model.charge(GpuTime(device="serverless", seconds=seconds, usd_per_hour=price))
            return
        costs = costs_of(job)
        if not costs:
            model.metrics_builder().prices.warn_once(
                "the service does not report the cost of jobs: rows have no cost of training. Give "
                "the backend cost_per_hour_usd=..."
            )
        for path, usd in costs.items():
            try:
                model.metrics_builder("train").add_cost(path, usd)
            except MetricError as error:
                log.warning("the service's cost %r of $%g is left out: %s", path, usd, error)


@attrs.frozen(kw_only=True)
class Pending:
    """A training step that was sent: the request's `key`, the number of the step, and the job's id
    once the service has answered.
    """

    key: str
    model_id: str
    step: int
    job_id: str | None = None

    @classmethod
    def new(cls, model_id: str, step: int) -> Pending:
        """Return a request with a key of its own, about to be sent."""
        return cls(key=secrets.token_hex(16), model_id=model_id, step=step)


@attrs.frozen
class Journal:
    """A file in the run's directory. A run has at most one step under way."""

    run_dir: Path

    def read(self) -> Pending | None:
        """Return the step under way, if any."""
        found: dict[str, Any] = read_json(self.run_dir / JOURNAL)
        return Pending(**found["pending"]) if found.get("pending") else None

    def write(self, pending: Pending | None) -> None:
        """Save the step under way; None when it is over."""
        saved = None if pending is None else attrs.asdict(pending)
        replace_json(self.run_dir / JOURNAL, {"pending": saved})
