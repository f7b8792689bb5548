"""The local backend: models trained and served in this process."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch  # noqa: TID253

from art_core import (
    Checkpoint,
    Endpoint,
    GpuTime,
    RegisteredModels,
    TrainResult,
    TrajectoryGroup,
)
from art_core.base.errors import BackendError, ConfigError
from art_core.rl.config import TrainConfig, cap, check_options, count, optional, price
from art_local.engine import DeviceTurns
from art_local.engines import choose, held_devices
from art_local.models import resolve_base_model
from art_local.models.chat_template import read_template
from art_local.models.identity import BaseIdentity
from art_local.models.placement import placement
from art_local.session.adapter_card import Recipe
from art_local.session.gpu_timer import Clock
from art_local.session.model_session import Seat, SeatOptions, take_seat
from art_local.training.checkpointing import check_mode
from art_local.vllm.pool import Servers

if TYPE_CHECKING:
    from art_core import TrainableModel

CLOSE_TIMEOUT_S = 600.0
T = TypeVar("T")


class LocalBackend:
    """Trains and serves models on one device of this machine (see `art_core.backends.Backend`).

    - `device`: "cpu", "cuda", "cuda:1", ...; by default a CUDA device if there is one.
    - `dtype`: "bfloat16" or "float32"; by default bf16 where the hardware multiplies it.
    - `engine`: "transformers" (embedded), "vllm" (a server of its own), or "auto": vLLM where it is
      installed for the engine's kind of device and LoRA is trained, else transformers.
    - `engine_device`: of vLLM, when not the trainer's. `engine_url`, `engine_key`: a vLLM server
      that runs already, with runtime LoRA loading on and the run's directory in sight.
    - `engine_args`: further arguments of vLLM's server by name. `engine_timeouts`: see
      `art_local.vllm.supervisor.Patience`.
    - `gpu_cost_per_hour_usd`: price of the device (on a CPU: of the machine) for `costs/gpu`;
      without it, price plugins are asked for CUDA devices.
    - `lora_rank`, `lora_alpha`: the adapter on all linear layers; `full_finetune` trains all
      weights.
    - `activation_checkpointing`: True computes each layer again in the backward pass instead of
      keeping its activations; by default ("auto") a step does so where the activations of its
      longest sequence do not fit in the free memory.
    - `chat_template`: for base models without one, or instead of their own: the template's text, or
      the path of a jinja file. Checkpoints keep it.
    - `seed`: of the adapter's start. `max_batch_size`: sequences sampled together.
    - `context_length`: of the served models; by default the base model's own.
    - `served_steps`: steps whose weights stay in memory for `name@step`, by default the newest and
      the one before; others are loaded when asked for.
    - `request_timeout_s`: of one request to the endpoint.
    - `progress`: show progress bars.

    Raises ConfigError for an option, a device, a dtype or an engine that does not exist here.
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        dtype: str | None = None,
        engine: str = "auto",
        engine_device: str | None = None,
        engine_url: str | None = None,
        engine_key: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
        engine_timeouts: Mapping[str, float] | None = None,
        gpu_cost_per_hour_usd: float | None = None,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        full_finetune: bool = False,
        activation_checkpointing: bool | str = "auto",
        chat_template: str | os.PathLike[str] | None = None,
        seed: int = 0,
        max_batch_size: int = 64,
        context_length: int | None = None,
        served_steps: int = 2,
        request_timeout_s: float = 600.0,
        progress: bool = True,
    ) -> None:
        check_options(
            count,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            max_batch_size=max_batch_size,
            served_steps=served_steps,
        )
        check_options(optional(count), context_length=context_length)
        check_mode(activation_checkpointing)
        check_options(cap, request_timeout_s=request_timeout_s)
        check_options(optional(price), gpu_cost_per_hour_usd=gpu_cost_per_hour_usd)
        self.placement = placement(device, dtype)
        self._choice = choose(
            engine,
            self.placement,
            full_finetune=full_finetune,
            engine_device=engine_device,
            engine_url=engine_url,
            engine_key=engine_key,
            engine_args=engine_args,
            engine_timeouts=engine_timeouts,
        )
        self.gpu_cost_per_hour_usd = gpu_cost_per_hour_usd
        self._options = SeatOptions(
            placement=self.placement,
            engine=self._choice,
            recipe=Recipe(lora=None if full_finetune else (lora_rank, lora_alpha), seed=seed),
            max_batch_size=max_batch_size,
            context_length=context_length,
            served_steps=served_steps,
            request_timeout_s=request_timeout_s,
            progress=progress,
            chat_template=read_template(chat_template),
            activation_checkpointing=activation_checkpointing,
        )
        self._seats: RegisteredModels[Seat] = RegisteredModels("local")
        self._leaving: dict[Path, Seat] = {}
        self._bases: dict[Path, Any] = {}
        self._identities: dict[Path, BaseIdentity] = {}
        self._servers = Servers()
        self._turns = DeviceTurns()
        # one thread: loading, training and checkpoints never overlap
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="art-train")
        self._clock = Clock()

    async def register(self, model: TrainableModel, *, step: int | None = None) -> Endpoint:
        """Load the model at its last whole checkpoint, or fresh, and serve it.

        `step` goes back to an older checkpoint, 0 to the base model; checkpoints after it are
        renamed to `<step>.abandoned`. A model that is registered already keeps its endpoint, unless
        it goes back. A device without a known price is
        reported here, before any rollout. Raises ConfigError for a base model that can't be used or
        a checkpoint that does not fit, BackendError when something could not be fetched.
        """
        self._seats.check_open()
        key = self._seats.key(model)

        def seated() -> Endpoint:
            taken = self._seats.get(key)
            if taken and step not in (None, taken.resident.step):
                self._leaving[key] = self._seats.pop(key)
                asyncio.run(self._left(key))
                taken = None
            seat = self._same_base(taken, model) if taken else self._take_seat(model, step)
            # noted here: what a caller did not wait for is closed with the rest
            self._seats[key] = seat
            return seat.endpoint

        endpoint = await self._on_worker(seated)
        for held in self._held(seconds=0.0):
            model.charge(held)
        return endpoint

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model and free what it holds, after the step under way; `register`
        brings it back at its last checkpoint. Cancelling stops the waiting, not this.
        """
        key = self._seats.key(model)
        if key not in self._seats:
            return
        # from here on nothing else refers to it, so that its memory can be freed
        self._leaving[key] = self._seats.pop(key)
        await asyncio.shield(self._on_worker(partial(self._leave, key, model)))

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step (`TrainConfig.of(**options)`), serve its weights and write its checkpoint.

        Requests under way finish on the weights that they began with. The device's time since the
        last charge is charged to the model, also when the step fails.
        """
        seat = self._seats.of(model)
        config = TrainConfig.of(model.plugins.losses(), **options)
        try:
            return await self._on_worker(lambda: seat.resident.train(groups, config))
        finally:
            self._charge(model)

    async def step(self, model: TrainableModel) -> int:
        """Return the step of the newest weights."""
        return self._seats.of(model).resident.step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints on disk, oldest first."""
        store = self._seats.of(model).resident.store
        return [Checkpoint(step=step, path=store.path(step)) for step in store.steps()]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""
        store = self._seats.of(model).resident.store
        return await self._on_worker(lambda: store.delete(keep))

    async def close(self) -> None:
        """Finish the step under way, stop serving, free the device; a second call does nothing."""
        if self._seats.closed:
            return
        self._seats.closed = True
        try:
            await asyncio.wait_for(
                asyncio.to_thread(self._worker.shutdown, cancel_futures=True), CLOSE_TIMEOUT_S
            )
        except TimeoutError:
            raise BackendError(
                f"a training step did not end within {CLOSE_TIMEOUT_S:.0f} s"
            ) from None
        finally:
            self._leaving |= self._seats
            self._seats.clear()
            models = [await self._left(key) for key in list(self._leaving)]
            if models:
                self._charge(models[-1])
            await asyncio.to_thread(self._free)

    def _leave(self, key: Path, model: TrainableModel) -> None:
        asyncio.run(self._left(key))
        self._charge(model)
        self._free()

    async def _left(self, key: Path) -> TrainableModel:
        """Close a seat that is leaving; return its model."""
        await self._leaving[key].close()
        return self._leaving.pop(key).model

    def _take_seat(self, model: TrainableModel, step: int | None = None) -> Seat:
        self._clock.start()
        shared = None
        try:
            directory = resolve_base_model(model.base_model, progress=self._options.progress)
            identity = self._identity(str(model.base_model), directory)
            if self._choice.sleeps:
                # a server takes its share of what is free, and counts as its own what others take
                # of the device while it starts
                self._base(directory)
            # started first elsewhere: the trainer loads the base model while the server does
            names = {s.shared.adapter_name for s in self._seats.values() if s.shared}
            shared = self._servers.share(model, directory, self._options, names)
            base = self._base(directory)
            return take_seat(model, identity, base, self._options, self._turns, shared, step)
        except BaseException:
            if shared and not any(s.uses(shared.engine) for s in self._seats.values()):
                self._servers.end(directory)
            self._free()
            raise

    def _identity(self, name: str, directory: Path) -> BaseIdentity:
        """Return a base model's identity; ConfigError when other weights lie where those that are
        loaded came from.
        """
        if directory in self._bases:
            self._identities[directory].check_unchanged()
        else:
            self._identities[directory] = BaseIdentity.of(name, directory)
        return attrs.evolve(self._identities[directory], name=name)

    def _same_base(self, seat: Seat, model: TrainableModel) -> Seat:
        """Return the seat for a model object that has taken over; ConfigError when it names another
        base model.
        """
        if str(model.base_model) != seat.resident.base.name:
            directory = resolve_base_model(model.base_model, progress=self._options.progress)
            found = BaseIdentity.of(str(model.base_model), directory)
            if found.fingerprint != seat.resident.base.fingerprint:
                raise ConfigError(
                    f"model {model.name!r} is registered over base model "
                    f"{seat.resident.base.name!r}, and {found.name!r} is another one",
                    "Give it the same base model, or another name.",
                )
        return attrs.evolve(seat, model=model)

    def _base(self, directory: Path) -> Any:
        if directory not in self._bases:
            self._bases[directory] = self._options.loader.base(
                directory, self.placement, self.placement.dtype
            )
        return self._bases[directory]

    def _free(self) -> None:
        """Without any model nothing is held, and nothing is paid for. What nobody refers to any
        more goes back to the device.
        """
        if not self._seats and not self._leaving:
            self._bases.clear()
            self._identities.clear()
            self._servers.close()
            self._clock.stop()
        # a model's layers and their own forward passes refer to each other
        gc.collect()
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()

    async def _on_worker(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._seats.closed and not (task and task.cancelling()):
                raise self._seats.closed_error() from None  # closing took it out of the queue
            raise

    def _charge(self, model: TrainableModel) -> None:
        for held in self._held(self._clock.take()):
            model.charge(held)

    def _held(self, seconds: float) -> list[GpuTime]:
        """Return what is charged for a time; a CPU is not, unless the user gave a price."""
        price = self.gpu_cost_per_hour_usd
        return [
            GpuTime(device=held.device_name, count=1, seconds=seconds, usd_per_hour=price)
            for held in held_devices(self.placement, self._choice)
            if held.device.type != "cpu" or price is not None
        ]
