"""The backend in the user's process: it forwards calls to the local backend in the worker."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import (
    BackendError,
    Checkpoint,
    ConfigError,
    Endpoint,
    GpuTime,
    RegisteredModels,
    TrainConfig,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
)
from art_core.rl.batch import no_critic
from art_core.rl.sft import ExampleSize, sft_config
from art_unsloth import wire
from art_unsloth.channel import OnMessage, Worker
from art_unsloth.options import UnslothOptions

if TYPE_CHECKING:
    from art_core import TrainableModel

START_TIMEOUT_S = 600.0
Start = Callable[[OnMessage], Worker]


class UnslothBackend:
    """Trains and serves models in a worker process that imports Unsloth first (see
    `art_core.Backend` and `UnslothOptions`).

    The worker starts when the backend is created, because it checks the options against this
    machine. If it dies, its requests fail with a BackendError, and the next `register` starts
    another.

    Raises ConfigError for an option, a device, a dtype or an engine that does not exist here.
    """

    def __init__(self, options: UnslothOptions, *, start: Start = Worker) -> None:
        self._options = options
        self._start = start
        self._models: RegisteredModels[TrainableModel] = RegisteredModels("unsloth")
        self._meter = _Meter()
        self._starting = threading.Lock()
        self._worker: Worker | None = None
        self._start_worker()

    @property
    def worker_pid(self) -> int:
        """The id of the worker's process."""
        assert self._worker is not None
        return self._worker.pid

    async def register(self, model: TrainableModel, *, step: int | None = None) -> Endpoint:
        """Load the model at its last whole checkpoint, or fresh, and serve it from the worker;
        `step` goes back to an older checkpoint.
        """
        self._models.check_open()
        await asyncio.to_thread(self._start_worker)
        self._models[self._models.key(model)] = model
        self._meter.start()
        return Endpoint(**await self._ask("register", model, step=step))

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model and free what it holds, after the step under way."""
        if self._worker is not None and self._worker.exit_reason is None:
            await self._ask("unregister", model)
        self._models.pop(self._models.key(model), None)

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step in the worker (`TrainConfig.of(**options)`) and serve its weights.

        Cancelling this call does not stop the step. Its device time is charged to the model in any
        case, even if the worker dies.
        """
        self._models.check_open()
        offered = model.plugins
        if TrainConfig.of(offered.losses(), offered.advantages(), **options).critic:
            raise no_critic()
        for name in ("loss_fn", "advantage_fn"):
            if not isinstance(options.get(name) or "", str):
                raise ConfigError(
                    f"{name} is {options[name]!r:.80}, which cannot be sent to the worker",
                    'Give a name, or a function\'s "module:function".',
                )
        values = await asyncio.to_thread(wire.group_values, groups)
        plain = wire.option_values(options)
        return wire.result_of(await self._ask("train", model, groups=values, options=plain))

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Run one step of supervised fine-tuning in the worker (`sft_config(**options)`)."""
        self._models.check_open()
        sft_config(**options)
        values = await asyncio.to_thread(wire.batch_values, batches)
        plain = wire.option_values(options)
        return wire.result_of(await self._ask("train_sft", model, batches=values, options=plain))

    async def check_sft(
        self, model: TrainableModel, examples: Sequence[Trajectory]
    ) -> Sequence[ExampleSize]:
        """Return the size of each example, or why it can't be trained."""
        values = await asyncio.to_thread(wire.batch_values, [examples])
        sizes = await self._ask("check_sft", model, batches=values)
        return [ExampleSize(**size) for size in sizes]

    async def step(self, model: TrainableModel) -> int:
        """Return the step of the newest weights."""
        step: int = await self._ask("step", model)
        return step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints on disk, oldest first."""
        found = await self._ask("checkpoints", model)
        return [Checkpoint(step=step, path=Path(path)) for step, path in found]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""
        deleted: list[int] = await self._ask("delete_checkpoints", model, keep=list(keep))
        return deleted

    async def close(self) -> None:
        """Finish the step under way, stop serving, end the worker; a second call does nothing."""
        if self._models.closed:
            return
        self._models.closed = True
        worker = self._worker
        assert worker is not None
        try:
            if worker.exit_reason is None:
                await self._answer(worker, "close")
        finally:
            await asyncio.to_thread(worker.end)
            self._models.clear()

    def _start_worker(self) -> None:
        """Start a worker if there is none or it has died; wait until it is ready."""
        with self._starting:
            if self._worker is not None and self._worker.exit_reason is None:
                return
            self._models.clear()
            worker = self._start(self._charge)
            try:
                path = [entry for entry in sys.path if entry]
                opened = worker.request("open", options=self._options.values(), path=path)
                devices = opened.result(START_TIMEOUT_S)
                self._meter.set_devices([GpuTime(**device) for device in devices])
            except TimeoutError:
                worker.end(timeout=0.0)
                raise BackendError(
                    f"Unsloth was not loaded in a worker process within {START_TIMEOUT_S:.0f} s",
                    "`python -c 'import unsloth'` shows the reason.",
                ) from None
            except BaseException:
                worker.end()
                raise
            self._worker = worker

    async def _ask(self, operation: str, model: TrainableModel, **values: Any) -> Any:
        self._models.check_open()
        assert self._worker is not None
        worker = self._worker
        try:
            return await self._answer(worker, operation, model=self._identity(model), **values)
        except BackendError:
            if worker.exit_reason is not None:
                self._meter.charge_rest(model)
            raise

    async def _answer(self, worker: Worker, operation: str, **values: Any) -> Any:
        # In a thread, because groups are long lines and the event loop serves rollouts.
        future = await asyncio.to_thread(worker.request, operation, **values)
        return await asyncio.wrap_future(future)

    def _identity(self, model: TrainableModel) -> dict[str, str]:
        """Return the values of a model that the worker needs."""
        return {
            "name": model.name,
            "project": model.project,
            "base_model": str(model.base_model),
            "run_dir": str(self._models.key(model)),
        }

    def _charge(self, message: dict[str, Any]) -> None:
        """Charge a model; the message comes before the answer to the request that it is for."""
        self._meter.charged()
        model = self._models.get(Path(message["run_dir"]))
        if model is not None:
            model.charge(GpuTime(**message["charge"]))


class _Meter:
    """The time of the last charge: if the worker dies, the time since then is charged, too."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._devices: list[GpuTime] = []

    def set_devices(self, devices: Sequence[GpuTime]) -> None:
        """Set the devices that are charged for, with their prices."""
        self._devices = list(devices)

    def start(self) -> None:
        self._since = self._since or time.monotonic()

    def charged(self) -> None:
        self._since = time.monotonic()

    def charge_rest(self, model: TrainableModel) -> None:
        """Charge the time that a dead worker could not report, once."""
        since, self._since = self._since, None
        if since is None:
            return
        for held in self._devices:
            model.charge(attrs.evolve(held, seconds=time.monotonic() - since))
