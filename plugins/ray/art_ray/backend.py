"""The backend: models whose trainer, engines and rollouts run in a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from art_core import (
    BackendError,
    Checkpoint,
    ConfigError,
    Endpoint,
    RegisteredModels,
    TrainConfig,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
)
from art_core.rl.sft import ExampleSize, example_size, sft_config
from art_local.models import resolve_base_model
from art_local.models.find import BaseIdentity
from art_ray import cluster
from art_ray.nodes import ActorPlace
from art_ray.options import RayOptions, RolloutResources
from art_ray.session import RaySession

if TYPE_CHECKING:
    from art_core import TrainableModel

LOOPBACK = "127.0.0.1"
CLOSE_TIMEOUT_S = 600.0
T = TypeVar("T")


class RayBackend:
    """Trains and serves models in a Ray cluster (see `art_core.Backend` and `RayOptions`).

    This process keeps the run's directory and the endpoint. The trainer is an actor that runs the
    local backend; engines are actors; both are reserved together in a placement group.

    Raises ConfigError for an invalid option, BackendError if there is no cluster.
    """

    def __init__(self, options: RayOptions) -> None:
        self.options = options
        self._sessions: RegisteredModels[RaySession] = RegisteredModels("ray")
        # one thread: starting, training and checkpoints never overlap
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="art-ray")
        self._connected = cluster.connect(options)

    @property
    def rollouts(self) -> RolloutResources | None:
        """The resources of rollouts that run as tasks; None if the option was not given."""
        return self.options.parts()[2]

    async def register(self, model: TrainableModel, *, step: int | None = None) -> Endpoint:
        """Start the model's trainer and engines at its last whole checkpoint, or fresh, and serve
        it; `step` goes back to an older checkpoint, 0 to the base model.
        """
        self._sessions.check_open()
        return await self._on_worker(partial(self._register, model, step))

    def _register(self, model: TrainableModel, step: int | None) -> Endpoint:
        key = self._sessions.key(model)
        session = self._sessions.get(key)
        if session is not None and step not in (None, session.step):
            self._sessions.pop(key).close()
            session = None
        if session is not None:
            self._check_same_base(session, model)
            session.model = model
        else:
            directory = resolve_base_model(model.base_model, progress=self.options.progress)
            identity = BaseIdentity.of(str(model.base_model), directory)
            session = RaySession(model, identity, self.options, self._address())
            session.open(step)
            self._sessions[key] = session
        for held in session.device_times(seconds=0.0):
            model.charge(held)
        return session.endpoint

    async def unregister(self, model: TrainableModel) -> None:
        """End the model's actors after the current step; `register` brings it back at its last
        checkpoint.
        """
        session = self._sessions.pop(self._sessions.key(model), None)
        if session is not None:
            await asyncio.shield(self._on_worker(partial(self._end, session, model)))

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step in the cluster (`TrainConfig.of(**options)`) and serve its weights.

        Cancelling this call does not stop the step. The time of the model's nodes is charged to it,
        also if the step fails or is run again.
        """
        session = self._sessions.of(model)
        config = TrainConfig.of(model.plugins.losses(), model.plugins.advantages(), **options)
        return await self._charged(model, lambda: session.train(groups, config, options))

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Run one step of supervised fine-tuning in the cluster (`sft_config(**options)`)."""
        session = self._sessions.of(model)
        config = sft_config(**options)
        return await self._charged(model, lambda: session.train_sft(batches, config, options))

    async def check_sft(
        self, model: TrainableModel, examples: Sequence[Trajectory]
    ) -> Sequence[ExampleSize]:
        """Return the size of each example, or why it can't be trained."""
        turns = self._sessions.of(model).turns
        return await asyncio.to_thread(lambda: [example_size(each, turns) for each in examples])

    async def step(self, model: TrainableModel) -> int:
        """Return the step of the newest weights."""
        return self._sessions.of(model).step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints in the run's directory, oldest first."""
        store = self._sessions.of(model).store
        return [Checkpoint(step=step, path=store.path(step)) for step in store.steps()]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps, the newest and those in use; return the deleted
        steps.
        """
        session = self._sessions.of(model)
        return await self._on_worker(lambda: session.delete_checkpoints(keep))

    def places(self, model: TrainableModel) -> list[ActorPlace]:
        """Return where a model is: its trainer, then each replica of its engine."""
        return self._sessions.of(model).places()

    async def close(self) -> None:
        """Finish the current step, end all actors; a second call does nothing."""
        if self._sessions.closed:
            return
        self._sessions.closed = True
        try:
            await asyncio.wait_for(
                asyncio.to_thread(self._worker.shutdown, cancel_futures=True), CLOSE_TIMEOUT_S
            )
        except TimeoutError:
            raise BackendError(
                f"a training step did not end within {CLOSE_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            sessions = list(self._sessions.values())
            self._sessions.clear()
            for session in sessions:
                await asyncio.to_thread(self._end, session, session.model)
            if self._connected:
                self._connected = False
                await asyncio.to_thread(cluster.disconnect)

    def _end(self, session: RaySession, model: TrainableModel) -> None:
        session.close()
        self._charge(model, session)

    async def _charged(self, model: TrainableModel, work: Callable[[], T]) -> T:
        session = self._sessions.of(model)
        try:
            return await self._on_worker(work)
        finally:
            self._charge(model, session)

    def _charge(self, model: TrainableModel, session: RaySession) -> None:
        for held in session.device_times():
            model.charge(held)

    def _address(self) -> str:
        """Return the address at which endpoints listen: tasks on other nodes ask them, too."""
        return LOOPBACK if self.rollouts is None else str(ray.util.get_node_ip_address())

    def _check_same_base(self, session: RaySession, model: TrainableModel) -> None:
        name = str(model.base_model)
        if name == session.identity.name:
            return
        directory: Path = resolve_base_model(model.base_model, progress=self.options.progress)
        if BaseIdentity.of(name, directory).fingerprint != session.identity.fingerprint:
            raise ConfigError(
                f"model {model.name!r} is registered over base model "
                f"{session.identity.name!r}, and {name!r} is another one",
                "Give it the same base model, or another name.",
            )

    async def _on_worker(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._sessions.closed and not (task and task.cancelling()):
                raise self._sessions.closed_error() from None  # closing removed it from the queue
            raise
