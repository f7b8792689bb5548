"""Trained models: their backend, steps and checkpoints."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import attrs

from art_core.backends import Checkpoint, Endpoint, TrainResult
from art_core.base.errors import ConfigError, HistoryError
from art_core.data.store import tidy_step, trajectory_file
from art_core.data.trajectory import TrajectoryGroup
from art_core.log.rundir import append_options
from art_core.metrics.receipt import GpuTime
from art_core.model.backend import Backend, option_names
from art_core.model.backend import backend as make_backend
from art_core.model.interrupted import BegunStep, can_go_back, step_with_row, write_row
from art_core.model.model import Model, ready_groups
from art_core.model.sft import Data, train_sft
from art_core.model.sft_plan import SFTPlans
from art_core.model.stopping import check_stop
from art_core.model.teacher import Teacher
from art_core.rl.config import TrainConfig, used_config
from art_core.rl.schedules import RateOrSchedule, options_at
from art_core.rl.sft import DEFAULT_LEARNING_RATE
from art_core.rl.stored_options import stored_options
from art_core.run.checkpoints import (
    KeepCheckpoints,
    Retention,
    StoredSteps,
    check_resumed,
    keep_recent_and_top,
)
from art_core.run.run import CLOSE_SECONDS, Registered
from art_core.run.scenario_means import ScenarioMeans
from art_core.sinks.delivery import DeliveryReport

log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class TrainableModel(Model):
    """A model whose weights a backend trains and serves.

    The backend starts from `base_model`. `backend` is a backend or its name, registered on first
    use (default: the one of `ART_BACKEND`). `keep_checkpoints` returns the checkpoints that stay
    after each step: `art.keep_all()`, `art.keep_every(n)`, by default
    `art.keep_recent_and_top(3, 2, "val/reward")`, or a function of `art.StoredSteps`.
    """

    base_model: str
    backend: Backend | str | None = None
    keep_checkpoints: KeepCheckpoints = attrs.field(factory=keep_recent_and_top)
    _endpoint: Endpoint | None = attrs.field(default=None, init=False, repr=False)
    _means: ScenarioMeans | None = attrs.field(default=None, init=False, repr=False)
    _retention: Retention | None = attrs.field(default=None, init=False, repr=False)
    _made: Backend | None = attrs.field(default=None, init=False, repr=False)
    _trainable: ClassVar[bool] = True
    _registering: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False, repr=False)
    _step_failed: bool = attrs.field(default=False, init=False, repr=False)
    _sft_starts: set[int] = attrs.field(factory=set, init=False, repr=False)

    async def register(
        self, backend: Backend | str | None = None, *, step: int | None = None
    ) -> None:
        """Have a backend load the model, at its last checkpoint or fresh, and serve it.

        `step` goes back to an older checkpoint, 0 to the base model; the backend sets later
        checkpoints aside. Without `step`, BackendError is raised if the log has trained steps and
        the backend has no checkpoint; a warning is logged if the backend is behind the log.

        A backend that the model makes from a name is closed by the model: when the model is closed,
        when another backend is registered, and when this call fails.
        """
        async with self._registering:
            await self._register(backend, step)

    async def _register(self, backend: Backend | str | None, step: int | None = None) -> None:
        chosen = backend or self.backend or os.environ.get("ART_BACKEND")
        if chosen is None:
            raise ConfigError(
                f"model {self.name!r} has no backend",
                'Call await model.register(art.backend("local")).',
            )
        new, before = isinstance(chosen, str), self._made
        if isinstance(chosen, str):
            chosen = make_backend(chosen)
        try:
            before = await self._leave_inherited(chosen) or before
            self._endpoint = await self._resumed(chosen, step)
        except BaseException:
            if new:
                await chosen.close()
            raise
        self.backend = chosen
        self._made = chosen if new or chosen is before else None
        self.run.backend = Registered(chosen, self._made is chosen)
        if before is not None and before is not chosen:
            await before.close()
        await self._close_clients()
        self._clients.clear()

    async def _resumed(self, chosen: Backend, step: int | None) -> Endpoint:
        """Have the backend load the model at its last checkpoint, or at `step`."""
        if step is not None:
            self._check_going_back(chosen, step)
            return await chosen.register(self, step=step)  # type: ignore[call-arg]
        endpoint = await chosen.register(self)
        trained, found = self.run.trained_step(), await chosen.step(self)
        with_row = await step_with_row(self, chosen, trained, found)
        if with_row is not None:
            log.warning(
                "step %d of %s has a checkpoint and no row: it was interrupted between the two, "
                "and is trained again",
                found,
                self.run.name,
            )
            return await chosen.register(self, step=with_row)  # type: ignore[call-arg]
        if trained := write_row(self.run, found):
            try:
                back = can_go_back(chosen)
                check_resumed(self.run.name, trained, found, can_go_back=back)
            except BaseException:
                await chosen.unregister(self)
                raise
        return endpoint

    def _check_going_back(self, chosen: Backend, step: int) -> None:
        if not can_go_back(chosen):
            raise ConfigError(
                f"backend {type(chosen).__name__} can't go back to step {step}: its register() "
                "takes no step",
                "Leave step out, or use another model name to begin again.",
            )
        last = self.run.history.last
        if last is not None and last.attempt == self.run.info.attempt and last.step > step:
            raise ConfigError(
                f"model {self.name!r} has logged step {last.step} and can't go back to step {step}",
                "Make the model again, art.TrainableModel(...), and register that one: its rows "
                "are a new attempt.",
            )

    async def _leave_inherited(self, chosen: Backend) -> Backend | None:
        """Free the backend of an older object of this run. Return the chosen backend if that object
        made it.
        """
        inherited, self.run.inherited = self.run.inherited, None
        if inherited is None:
            return None
        if inherited.backend is chosen:
            return chosen if inherited.owned else None
        if inherited.owned:
            await inherited.backend.close()
        else:
            await inherited.backend.unregister(self)
        return None

    async def _ready_backend(self) -> Backend:
        if self._endpoint is None:
            async with self._registering:
                await self._register_first()
        assert self.backend is not None and not isinstance(self.backend, str)
        return self.backend

    async def _register_first(self) -> None:
        if self._endpoint is None:  # another task may have been faster
            await self._register(None)

    def endpoint(self) -> Endpoint:
        """Return the endpoint that serves the model; ConfigError before `register`."""
        if self._endpoint is None:
            raise ConfigError(
                f"model {self.name!r} is not registered",
                "Call await model.register(backend) first.",
            )
        return self._endpoint

    def _weights_name(self) -> str | None:
        return self.base_model

    async def get_step(self) -> int:
        """Return the training step of the newest weights."""
        if self._endpoint is None:
            return self.run.last_step
        return await (await self._ready_backend()).step(self)

    async def train(
        self,
        trajectory_groups: Iterable[TrajectoryGroup],
        *,
        teacher: Teacher | None = None,
        cursor: int | None = None,
        **options: Any,
    ) -> TrainResult:
        """Run one training step on the groups and log them and its metrics as one row.

        Options are those of `TrainConfig`; `learning_rate` may also be a `Schedule` or a function,
        which is given the number of steps before this one. A `teacher` scores the sampled tokens
        first (see `Teacher`): with it the loss is "distill", or the `loss_fn` of the options, whose
        `distill_coef` is then 1 by default. The groups are checked and stored before the step
        begins, so a failing step loses no data; a second try with the same groups does not store
        them again. If a cancelled step ends first, they move to the next step's file. Groups that
        were stored for the step earlier and not trained move to the file of the same name in
        `earlier/`. The row keeps the `cursor` of the batch, if the groups are of the run's queue.
        Raises MetricError for a metric of a trajectory or group that no row can hold; StoppedError,
        with the groups stored, if a sink such as the doctor ended the training; BudgetError for a
        step that would exceed the budget. The last step within it has a checkpoint.
        """
        backend = await self._ready_backend()
        groups = ready_groups(trajectory_groups)
        run = self.run
        run.check("train", groups)
        if self._ledger.budget is not None:
            options = self._ledger.budget.begin_step(options)
        expected = await backend.step(self) + 1
        options = options_at(options, expected - 1)
        if options.get("advantage_baseline") == "scenario_mean":
            groups = await asyncio.to_thread(self._scenario_means().given_to, groups, expected)
        if teacher is not None:
            options = await self._scored(teacher, groups, options, expected)
        start = self._store("train", expected, groups)
        self._settle("train", groups)
        options = {**options, **await check_stop(self, run.info.stop)}
        # A step whose call failed may still be trained, by the number that this one expects.
        if not self._step_failed:
            BegunStep(expected, start, cursor).keep(run.info.run_dir)
        try:
            result = await backend.train(self, groups, **options)
        except BaseException:
            self._step_failed = True
            BegunStep.forget(run.info.run_dir)
            raise
        self._step_failed = False
        SFTPlans(run.info.run_dir).leave(expected - 1)
        # A newer object may have the run now; the step is trained, so its row is written.
        run.current().record(
            "train", result.step, groups=groups, metrics=result.metrics, trained=True,
            config=used_config(options, self.plugins.losses(), self.plugins.advantages()),
            cursor=cursor,
        )  # fmt: skip
        # The row is written: raising now would make the caller train the step again.
        try:
            BegunStep.forget(run.info.run_dir)
            kept = stored_options(options, self.plugins.losses(), self.plugins.advantages())
            append_options(run.info.run_dir, result.step, kept)
            tidy_step(run.info.run_dir, groups, (expected, start), result.step)
        except (HistoryError, OSError) as error:
            log.warning("options and trajectories of step %d: %s", result.step, error)
        if result.checkpoint is not None:
            await self.delete_unkept_checkpoints()
        return result

    async def train_sft(
        self, data: Data, *, learning_rate: RateOrSchedule = DEFAULT_LEARNING_RATE, **options: Any
    ) -> TrainResult:
        """Train on given conversations; log one row per training step. Return the last result.

        `data` is the path of a JSON-lines file (OpenAI's chat format with `messages` and `tools`,
        or trajectories of runs), or trajectories or groups, whose rewards are not read. The loss is
        the mean of -log p over the assistant's tokens of a batch.

        - `learning_rate`: a number, an `art.Schedule` (of the batches, if it states no
          `total_steps`), or a function of the number of batches before.
        - `batch_size`: examples per optimizer step; "auto" gives an epoch ten batches of at most 32
          examples. `epochs`: passes over the data.
        - `batches_per_step`: optimizer steps per training step, which has one row and one number.
        - `checkpoint_every`: training steps between checkpoints, by default a twentieth of all; the
          last step always has one.
        - `shuffle`, `seed`: each epoch has its own order, which depends on the seed only.
        - `skip_invalid`: leave out what can't be trained, with a warning, instead of refusing it.
        - `resume`: go on with a `train_sft` that was interrupted, and pass over one that an earlier
          process completed. False begins anew.
        - others are those of `TrainConfig`: `optimizer`, `weight_decay`, `max_grad_norm`,
          `micro_batch_tokens`, `packing`, `packed_sequence_length`,
          `logprob_calculation_chunk_size`.

        Raises ConfigError, before anything is trained, for conversations that can't be trained,
        with their lines, and for other data or options than those of the interrupted `train_sft`,
        with the difference.
        """
        backend = await self._ready_backend()
        return await train_sft(self, backend, data, self._sft_starts, learning_rate, options)

    def _scenario_means(self) -> ScenarioMeans:
        folder = trajectory_file(self.run.info.run_dir, "train", 0).parent
        if self._means is None or self._means.folder != folder:
            self._means = ScenarioMeans(folder)
        return self._means

    async def delete_unkept_checkpoints(self) -> None:
        """Delete the checkpoints that `keep_checkpoints` does not keep; a failure is a warning."""
        backend = await self._ready_backend()
        try:
            stored = tuple(c.step for c in await backend.checkpoints(self))
            kept = set(self.keep_checkpoints(StoredSteps(stored, self._ready_retention())))
            if not kept.issuperset(stored[:-1]):
                await backend.delete_checkpoints(self, kept)
        except Exception as error:
            log.warning("old checkpoints stay: %s: %s", type(error).__name__, error)

    async def _scored(
        self,
        teacher: Teacher,
        groups: Sequence[TrajectoryGroup],
        options: dict[str, Any],
        step: int,
    ) -> dict[str, Any]:
        """Have a teacher score the groups; return the options of the step. If it fails, the groups
        are stored without its scores.
        """
        if "loss_fn" not in options and "distill_coef" not in options:
            options = {**options, "loss_fn": "distill"}
        elif options.get("loss_fn") != "distill":
            options = {"distill_coef": 1.0, **options}
        config = TrainConfig.of(self.plugins.losses(), self.plugins.advantages(), **options)
        teacher.check_student(self)
        try:
            await teacher.score(groups, skip_truncated=config.mask_truncated)
        except BaseException:
            self._store("train", step, groups)
            raise
        return options

    def _backend_is_handed_over(self) -> bool:
        """Return whether a newer object of this run has the backend that this one made."""
        if self._run is None or self._run.heir is None:
            return False
        newer = self._run.current().backend
        return newer is not None and newer.backend is self._made

    def charge(self, time: GpuTime) -> float | None:
        """Add the cost of devices held to the next row's `costs/gpu`; backends call this.

        The price is the one in `time`, else a plugin's. Returns US dollars, or None, with one
        warning, if there is no price. A backend charges 0 seconds in `register`, so that the
        warning comes before the first rollout.
        """
        return self.metrics_builder().add_gpu_time(time, remedy=self._price_remedy())

    def _price_remedy(self) -> str:
        """Return how to give a device a price: by the backend's option, if it has one."""
        if "gpu_cost_per_hour_usd" in option_names(type(self.backend)):
            return "Give the backend gpu_cost_per_hour_usd=..."
        return (
            "A price book prices it, a plugin with the hook art_gpu_rate; what this run cost "
            f"computes: art reprice {shlex.quote(str(self.run_dir))} --gpu-usd-per-hour USD"
        )

    async def checkpoints(self) -> Sequence[Checkpoint]:
        """Return the checkpoints that the backend keeps, oldest first."""
        return await (await self._ready_backend()).checkpoints(self)

    async def delete_checkpoints(self, best_checkpoint_metric: str = "val/reward") -> list[int]:
        """Delete all checkpoints but the newest and the best by a metric; return the steps.

        All rows of the run are searched, in the direction of the metric's spec.
        """
        backend = await self._ready_backend()
        existing = [c.step for c in await backend.checkpoints(self)]
        keep = self._ready_retention().steps_to_keep(existing, best_checkpoint_metric)
        return await backend.delete_checkpoints(self, keep)

    async def best_checkpoint(
        self, metric: str = "val/reward", at_least: float | None = None
    ) -> int:
        """Return the step of the best checkpoint by a metric.

        A value counts by the worse end of its 95 % interval where its standard error was logged,
        as `art.evaluate` does. Raises ConfigError when no checkpoint has the metric, or none is
        surely at least `at_least`.
        """
        steps = [c.step for c in await self.checkpoints()]
        return self._ready_retention().best_step(steps, metric, at_least)

    def _ready_retention(self) -> Retention:
        if self._retention is None:
            self._retention = Retention(self.run.history.path, self._ledger.taxonomy)
        return self._retention

    async def close(
        self,
        timeout: float = CLOSE_SECONDS,
        *,
        status: str | None = None,
        error: BaseException | None = None,
    ) -> Mapping[str, DeliveryReport]:
        """Close the backend if this model made it, then the run as `Model.close` does."""
        try:
            if self._made is not None and not self._backend_is_handed_over():
                await self._made.close()
        finally:
            reports = await super().close(timeout, status=status, error=error)
        return reports
