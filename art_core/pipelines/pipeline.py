"""`art.pipeline`: rollouts, training and evaluation at the same time, over a queue on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.data.gather import AfterEach
from art_core.evaluation.attempts import Rollout
from art_core.gateway.gateway import GatewayOptions
from art_core.model.backend import option_names
from art_core.model.stopping import check_stop
from art_core.model.trainable import TrainableModel
from art_core.pipelines.batches import Batches, StepGroups, off_policy
from art_core.pipelines.config import PipelineConfig
from art_core.pipelines.evaluations import Evaluations, UsedSteps
from art_core.pipelines.interruption import first_interruption
from art_core.pipelines.status import show_status
from art_core.pipelines.supply import Supply
from art_core.pipelines.workers import LEASE_S, Failures, Workers
from art_core.queue.queue import AttemptQueue
from art_core.queue.version import version_of
from art_core.rl.config import TrainConfig
from art_core.rl.schedules import options_at

T = TypeVar("T")
_OWN = attrs.fields_dict(PipelineConfig).keys()


@attrs.frozen(kw_only=True)
class PipelineResult:
    """What a pipeline did: the step that the weights are at, the steps and the groups that it
    trained, the groups among them without spread, the stale groups, and the scenarios that were set
    aside because all their attempts failed.
    """

    step: int
    steps: int = 0
    groups: int = 0
    zero_variance: int = 0
    stale: int = 0
    set_aside: int = 0


async def pipeline(
    model: TrainableModel,
    scenarios: Iterable[Any],
    rollout: Rollout,
    *,
    eval_scenarios: Iterable[Any] = (),
    eval_rollout: Rollout | None = None,
    after_each: AfterEach | None = None,
    gateway: GatewayOptions | None = None,
    **options: Any,
) -> PipelineResult:
    """Train a model while `rollout(model, scenario)` makes the next attempts, and evaluations run.

    Options are those of `PipelineConfig`; all others are given to `model.train`. Attempts are in
    the queue in the run's directory as soon as they end. Called again, also after a kill, the
    pipeline goes on at the model's step with the attempts that are there; it neither skips nor
    repeats a scenario. `after_each` gets each group of a step, and returns it judged, or None to
    drop it. `eval_rollout` is that of evaluations, by default the same. With the options of a
    `gateway` the queue is served meanwhile, and each `art worker` with the same rollout makes
    attempts besides those of this process, of which there are none if `max_concurrent` is 0.

    Ctrl-C ends it after the current step, with KeyboardInterrupt; attempts and evaluations that
    still run are ended. So it is with BudgetError when the model's budget is spent. Raises
    ConfigError for options or scenarios that do not fit, RolloutError if too many rollouts fail.
    """
    given, held_out = list(scenarios), list(eval_scenarios)
    if not given:
        raise ConfigError("a pipeline needs scenarios", "Give at least one.")
    config = PipelineConfig(**{name: options.pop(name) for name in _OWN & options.keys()})
    if gateway is None and not config.max_concurrent:
        raise ConfigError(
            "max_concurrent is 0, and no worker elsewhere can make attempts",
            "Give the options of a gateway, such as gateway={}, or let attempts run here.",
        )
    model.check_scenarios(given)
    await model.checkpoints()  # registers a model that is not yet
    step = await model.get_step()
    training = _training(model, options, step)
    used = UsedSteps()
    queue = await asyncio.to_thread(
        AttemptQueue.open,
        model.run_dir,
        step=step,
        version="" if gateway is None else version_of(rollout),
        lease_s=LEASE_S,
        tries=config.tries,
        max_groups_ahead=config.groups_ahead,
    )
    served = nullcontext() if gateway is None else model.gateway(**(gateway | {"queue": queue}))
    async with queue, served:
        supply, failures = Supply(queue, given, config, gateway is not None), Failures(config)
        workers = Workers(queue, supply, model, rollout, config, used, failures, step)
        evaluations = Evaluations(model, held_out, eval_rollout or rollout, config, used)
        batches = Batches.of(queue, model, config, after_each, training)
        if "teacher" in options:
            batches.refills = False
        started = PipelineResult(step=step)
        run = _Run(model, config, options, queue, workers, evaluations, batches, started)
        with used.kept_by(model):
            return await run.run()


def _training(model: TrainableModel, options: Mapping[str, Any], step: int) -> TrainConfig:
    """Return the options of a step; ConfigError, before any rollout, for those that do not fit."""
    own = attrs.fields_dict(TrainConfig).keys()
    assert model.backend is not None and not isinstance(model.backend, str)
    of_backend = option_names(model.backend.train) - {"model", "groups"}
    known = own | of_backend | {"teacher"} | _OWN
    for name in options:
        if name not in known:
            raise ConfigError(unknown("option of a pipeline", name, known))
    values = {n: v for n, v in options_at(options, step).items() if n in own}
    return TrainConfig.of(model.plugins.losses(), model.plugins.advantages(), **values)


@attrs.define(eq=False)
class _Run:
    """A pipeline that runs."""

    model: TrainableModel
    config: PipelineConfig
    options: Mapping[str, Any]
    queue: AttemptQueue
    workers: Workers
    evaluations: Evaluations
    batches: Batches
    result: PipelineResult
    interrupted: asyncio.Event = attrs.field(factory=asyncio.Event)
    _waited_since: float = attrs.field(factory=time.monotonic)

    async def run(self) -> PipelineResult:
        """Train until the last step, the end of the scenarios, or Ctrl-C."""
        if self._at_end():
            return self.result
        self._begin_step()
        await self.workers.supply.begin()
        await self.evaluations.resume(self.result.step)
        working = asyncio.create_task(self.workers.run())
        with first_interruption(self.model.name) as self.interrupted:
            beside = [asyncio.create_task(self._show())] if self.config.progress else []
            if self.workers.supply.served:
                beside.append(asyncio.create_task(self.workers.supply.keep_filled()))
            try:
                await self._steps(working)
                await self._or_interrupted(self.evaluations.finish(), working)
            finally:
                for task in (*beside, working):
                    task.cancel()
                await asyncio.gather(*beside, working, return_exceptions=True)
                await self.evaluations.stop()
                await self.queue.settle(self.model.metrics_builder("train"))
        aside = len(await self.queue.set_aside())
        if self.interrupted.is_set():
            raise KeyboardInterrupt
        return attrs.evolve(self.result, set_aside=aside)

    def _at_end(self) -> bool:
        return self.config.steps is not None and self.result.step >= self.config.steps

    async def _steps(self, working: asyncio.Task[None]) -> None:
        while not self._at_end() and not self.interrupted.is_set():
            await check_stop(self.model, self.model.run.info.stop)
            taken = await self._or_interrupted(self.batches.take(self.result.step), working)
            if taken is None:
                break
            self._count(taken)
            if not taken.groups:
                break
            await self._step(taken)
            self.evaluations.check()
            if not self._at_end():
                self._begin_step()
        self.workers.stop()
        self.queue.end_leasing()
        if not self.interrupted.is_set() and self.evaluations.due_at_end(self.result.step):
            self.evaluations.begin(self.result.step)

    def _begin_step(self) -> None:
        """Reserve the next step in the model's budget, before its rollouts."""
        budget = self.model.metrics_builder().budget
        if budget is not None:
            budget.begin("train")

    def _count(self, taken: StepGroups) -> None:
        self.result = attrs.evolve(
            self.result,
            groups=self.result.groups + len(taken.groups),
            zero_variance=self.result.zero_variance + taken.flat,
            stale=self.result.stale + taken.stale,
        )

    async def _step(self, taken: StepGroups) -> None:
        """Train one step. Ctrl-C stops the workers meanwhile, and the step goes on."""
        self._add_figures(taken)
        options = dict(self.options)
        if self.evaluations.due(self.result.step + 1):
            options["save_checkpoint"] = True
        training = asyncio.create_task(
            self.model.train(taken.groups, cursor=taken.cursor, **options)
        )
        stopping = asyncio.create_task(self._stop_workers())
        try:
            trained = await training
        finally:
            stopping.cancel()
            training.cancel()
        await self.queue.commit(taken.cursor)
        self.workers.step = trained.step
        self.workers.failures.step_ended()
        self.result = attrs.evolve(self.result, step=trained.step, steps=self.result.steps + 1)
        self._waited_since = time.monotonic()
        if self.evaluations.due(trained.step):
            self.evaluations.begin(trained.step)

    async def _show(self) -> None:
        await show_status(self.queue, self.workers, self.evaluations, self.config.steps)

    async def _stop_workers(self) -> None:
        await self.interrupted.wait()
        self.workers.stop()

    def _add_figures(self, taken: StepGroups) -> None:
        """Add what happened since the last step to the row of the next one."""
        builder = self.model.metrics_builder("train")
        idle, _ = self.workers.idle.take()
        _, actor_s = self.workers.running.take()
        _, eval_s = self.evaluations.running.take()
        builder.add_idle_times(
            step_trainer_idle_s=time.monotonic() - self._waited_since,
            step_actor_idle_s=idle / max(1, self.config.max_concurrent),
        )
        builder.add_user_timing(step_actor_s=actor_s)
        if eval_s:
            builder.add_user_timing(step_eval_s=eval_s)
        figures = {
            "pipeline/step_num_groups_stale": taken.stale,
            "pipeline/step_num_groups_zero_variance": taken.flat,
            "pipeline/num_attempts_running": self.workers.running.level,
            **off_policy(taken.groups, self.result.step),
        }
        for key, value in figures.items():
            builder.add_metric(key, float(value))

    async def _or_interrupted(
        self, work: Coroutine[Any, Any, T], working: asyncio.Task[None]
    ) -> T | None:
        """Wait for work; None after Ctrl-C. Raises the error of the workers."""
        task = asyncio.create_task(work)
        interruption = asyncio.create_task(self.interrupted.wait())
        waiting: set[asyncio.Future[Any]] = {task, interruption, working}
        try:
            while not task.done() and not interruption.done():
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if working in done:
                    working.result()
                    waiting.discard(working)
            return await task if task.done() else None
        finally:
            for each in (task, interruption):
                each.cancel()
            await asyncio.gather(task, interruption, return_exceptions=True)
