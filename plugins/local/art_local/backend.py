"""The local backend: models trained and served in this process."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Sequence
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
    Trajectory,
    TrajectoryGroup,
)
from art_core.base.collector import collector_paused
from art_core.base.errors import BackendError, ConfigError
from art_core.rl.config import TrainConfig
from art_core.rl.sft import ExampleSize, example_size, sft_config
from art_local.engine import DeviceLock
from art_local.engines import charged_devices, choose, start_vllm
from art_local.models import resolve_base_model
from art_local.models.devices import trainer_placements
from art_local.models.find import BaseIdentity
from art_local.models.load import PLAIN, Loader, model_without_values
from art_local.models.placement import placement
from art_local.options import LocalOptions, read_template
from art_local.primitives.bases import Primitives
from art_local.session.checkpoints import AdapterCard
from art_local.session.gpu_timer import GpuTimer
from art_local.session.model_session import ModelSession, SessionSetup
from art_local.threads import release_helpers
from art_local.vllm.pool import SharedEngine, VllmPool

if TYPE_CHECKING:
    from art_core import TrainableModel
    from art_local.session.trainers import StartRanks

CLOSE_TIMEOUT_S = 600.0
T = TypeVar("T")


class LocalBackend:
    """Trains and serves models on one device of this machine (see `art_core.backends.Backend`).

    - `device`: "cpu", "cuda", "cuda:1", ...; by default a CUDA device if there is one.
    - `dtype`: "bfloat16" or "float32"; by default bf16 where the hardware multiplies it.
    - `engine`: "transformers" (embedded), "vllm" (a server process), or "auto": vLLM if it is
      installed for the engine's kind of device and LoRA is trained, else transformers.
    - `trainer_devices`: several devices, such as [0, 1] or ["cuda:0", "cuda:1"]: a process on each
      holds one part of the model (FSDP2), and they train it together; ["cpu", "cpu"] for tests.
    - `engine_devices`: the devices of vLLM, which splits each layer over them (tensor parallelism),
      or serves copies with engine_args={"data_parallel_size": 2}.
    - `engine_device`: the device of vLLM, by default the trainer's. `engine_url`, `engine_key`: a
      vLLM server that runs already. It must allow loading LoRA at runtime and see the run's
      directory.
    - `engine_args`: further arguments of vLLM's server by name. `engine_timeouts`: see
      `art_local.vllm.supervisor.Timeouts`.
    - `gpu_cost_per_hour_usd`: price of the device (on a CPU: of the machine) for `costs/gpu`; by
      default the price plugins' price of the CUDA device.
    - `lora_rank`, `lora_alpha`: the adapter on all linear layers; `full_finetune` trains all
      weights instead.
    - `activation_checkpointing`: True computes each layer again in the backward pass instead of
      storing its activations; by default ("auto") a step does so if the activations of its longest
      sequence do not fit in the free memory.
    - `chat_template`: for base models without one, or instead of their own: the template's text, or
      the path of a jinja file. Checkpoints contain it.
    - `seed`: of the adapter's initial weights. `max_batch_size`: sequences sampled together.
    - `deterministic`: the same requests with the same seeds give the same bits, whatever else runs:
      log-probs, weights and metrics of a resumed run are those of an uninterrupted one. For the
      embedded engine on a CPU; sampling is slower.
    - `engine_weights`: "int8" lets the embedded engine on a CPU sample with weights rounded to 8
      bits, which is faster for few sequences; the trainer keeps its own.
    - `accept_changes`: go on from a checkpoint of another rank, alpha or loss, which is an error
      otherwise.
    - `context_length`: of the served models; by default the base model's own.
    - `served_steps`: steps whose weights stay in memory for `name@step`, by default the newest and
      the one before; others are loaded on request.
    - `request_timeout_s`: of one request to the endpoint.
    - `progress`: show progress bars.

    Raises ConfigError for an option, a device, a dtype or an engine that does not exist here.
    """

    __signature__ = inspect.signature(LocalOptions)

    def __init__(
        self,
        *,
        loader: Loader = PLAIN,
        quantization: str | None = None,
        start_ranks: StartRanks | None = None,
        **options: Any,
    ) -> None:
        """`loader`, `quantization` and `start_ranks` are for backends built on this one: a loader
        of base models, the name of the quantization that it applies, and what starts the ranks of
        several devices elsewhere than on this machine.
        """
        self.options = given = LocalOptions(**options)
        trainers = trainer_placements(given, loader)
        engine = choose(given, trainers[0])
        where = trainers[0]
        if len(trainers) > 1 and engine.name == "transformers":
            where = placement(str(engine.device), given.dtype)  # of the copy that is sampled from
        lora = None if given.full_finetune else (given.lora_rank, given.lora_alpha)
        self._setup = SessionSetup(
            options=given,
            placement=where,
            engine=engine,
            card=AdapterCard(
                lora=lora,
                seed=given.seed,
                quantization=quantization,
                accept_changes=given.accept_changes,
            ),
            loader=loader,
            chat_template=read_template(given.chat_template),
            device_lock=DeviceLock(),
            trainers=trainers,
            start_ranks=start_ranks,
        )
        self._sessions: RegisteredModels[ModelSession] = RegisteredModels("local")
        self._closing: dict[Path, ModelSession] = {}
        self._bases: dict[Path, Any] = {}
        self._identities: dict[Path, BaseIdentity] = {}
        self._pool = VllmPool()
        # one thread: loading, training and checkpoints never overlap
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="art-train")
        self._timer = GpuTimer()

    def primitives(self) -> Primitives:
        """Return single operations over models of their own: gradients, optimizer steps, weights.

        Raises ConfigError for options that they do not have.
        """
        setup = self._setup
        return Primitives(self.options, setup.placement, setup.loader, setup.device_lock)

    async def register(self, model: TrainableModel, *, step: int | None = None) -> Endpoint:
        """Load the model at its last whole checkpoint, or at step 0, and serve it.

        `step` goes back to an older checkpoint, 0 to the base model; later checkpoints are renamed
        to `<step>.abandoned`. A model that is registered already keeps its endpoint, unless it goes
        back. A device without a known price is reported here, before any rollout. Raises
        ConfigError for a base model that can't be used or a checkpoint that does not fit,
        BackendError if something could not be fetched.
        """
        self._sessions.check_open()
        endpoint = await self._on_worker(partial(self._register, model, step))
        for device_time in self._device_time(seconds=0.0):
            model.charge(device_time)
        return endpoint

    def _register(self, model: TrainableModel, step: int | None) -> Endpoint:
        key = self._sessions.key(model)
        session = self._sessions.get(key)
        if session and step not in (None, session.step):
            self._closing[key] = self._sessions.pop(key)
            asyncio.run(self._close_session(key))
            session = None
        if session:
            self._check_same_base(session, model)
            session.model = model
        else:
            session = self._open_session(model, step)
        # stored by the worker: a session whose caller was cancelled is closed with the others
        self._sessions[key] = session
        return session.endpoint

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model and free what it holds, after the current step; `register` loads
        it again at its last checkpoint. Cancelling this call does not stop it.
        """
        key = self._sessions.key(model)
        if key not in self._sessions:
            return
        # nothing else refers to it from here on, so its memory can be freed
        self._closing[key] = self._sessions.pop(key)
        await asyncio.shield(self._on_worker(partial(self._unregister, key, model)))

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step (`TrainConfig.of(**options)`), serve its weights and write its checkpoint.

        Running requests finish on the weights that they started with. The device's time since the
        last charge is charged to the model, also if the step fails.
        """
        session = self._sessions.of(model)
        config = TrainConfig.of(model.plugins.losses(), model.plugins.advantages(), **options)
        try:
            return await self._on_worker(lambda: session.train(groups, config))
        finally:
            self._charge(model)

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Run one step of supervised fine-tuning (`sft_config(**options)`), with an optimizer step
        for each batch; serve its weights and write its checkpoint.
        """
        session = self._sessions.of(model)
        config = sft_config(**options)
        try:
            return await self._on_worker(lambda: session.train_sft(batches, config))
        finally:
            self._charge(model)

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
        """Return the checkpoints on disk, oldest first."""
        store = self._sessions.of(model).store
        return [Checkpoint(step=step, path=store.path(step)) for step in store.steps()]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints except those steps, the newest, those that requests use, and the
        reference of the last step's KL penalty; return the deleted steps.
        """
        session = self._sessions.of(model)
        return await self._on_worker(lambda: session.delete_checkpoints(keep))

    async def close(self) -> None:
        """Finish the current step, stop serving, free the device; a second call does nothing."""
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
            self._closing |= self._sessions
            self._sessions.clear()
            models = [await self._close_session(key) for key in list(self._closing)]
            if models:
                self._charge(models[-1])
            await asyncio.to_thread(self._free)

    def _unregister(self, key: Path, model: TrainableModel) -> None:
        asyncio.run(self._close_session(key))
        self._charge(model)
        self._free()

    async def _close_session(self, key: Path) -> TrainableModel:
        await self._closing[key].close()
        return self._closing.pop(key).model

    def _open_session(self, model: TrainableModel, step: int | None = None) -> ModelSession:
        self._timer.start()
        shared = None
        try:
            directory = self._directory(model)
            identity = self._identity(str(model.base_model), directory)
            if self._setup.engine.sleeps:
                # the server takes a share of the free memory, and counts what others allocate on
                # the device during its start as its own
                self._base(directory)
            # on another device it starts first: the trainer loads the base model meanwhile
            shared = self._shared_engine(model, directory)
            base = self._base(directory)
            return ModelSession.open(model, identity, base, self._setup, shared, step)
        except BaseException:
            if shared and not any(s.engine is shared.engine for s in self._sessions.values()):
                self._pool.end(directory)
            self._free()
            raise

    def _shared_engine(self, model: TrainableModel, directory: Path) -> SharedEngine | None:
        if self._setup.engine.name != "vllm":
            return None
        used = {s.shared.adapter_name for s in self._sessions.values() if s.shared}
        run_dir = model.run_dir.resolve()
        start = partial(
            start_vllm, self._setup.engine, self.options, self._setup.placement, directory, run_dir
        )
        return self._pool.share(directory, model.name, used, start)

    def _directory(self, model: TrainableModel) -> Path:
        return resolve_base_model(model.base_model, progress=self.options.progress)

    def _identity(self, name: str, directory: Path) -> BaseIdentity:
        """Return a base model's identity; ConfigError if the directory's weights have changed since
        they were loaded.
        """
        if directory in self._bases:
            self._identities[directory].check_unchanged()
        else:
            self._identities[directory] = BaseIdentity.of(name, directory)
        return attrs.evolve(self._identities[directory], name=name)

    def _check_same_base(self, session: ModelSession, model: TrainableModel) -> None:
        """Raise ConfigError if a model that takes over a session names another base model."""
        name = str(model.base_model)
        if name == session.identity.name:
            return
        found = BaseIdentity.of(name, self._directory(model))
        if found.fingerprint != session.identity.fingerprint:
            raise ConfigError(
                f"model {model.name!r} is registered over base model "
                f"{session.identity.name!r}, and {name!r} is another one",
                "Give it the same base model, or another name.",
            )

    def _base(self, directory: Path) -> Any:
        if directory not in self._bases:
            where = self._setup.placement
            with collector_paused():
                if len(self._setup.trainers) > 1 and self._setup.engine.name == "vllm":
                    # the ranks have its weights
                    self._bases[directory] = model_without_values(directory, where.dtype)
                else:
                    self._bases[directory] = self._setup.loader.base(directory, where, where.dtype)
        return self._bases[directory]

    def _free(self) -> None:
        """Free memory that nothing refers to. Without any model, also free the base models, end the
        servers and stop the timer.
        """
        if not self._sessions and not self._closing:
            self._bases.clear()
            self._identities.clear()
            self._pool.close()
            self._timer.stop()
        # a model's layers and their own forward passes refer to each other
        gc.collect()
        if self._setup.placement.device.type == "cuda":
            torch.cuda.empty_cache()

    async def _on_worker(self, work: Callable[[], T]) -> T:
        def run() -> T:
            try:
                return work()
            finally:
                release_helpers()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, run)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._sessions.closed and not (task and task.cancelling()):
                raise self._sessions.closed_error() from None  # closing removed it from the queue
            raise

    def _charge(self, model: TrainableModel) -> None:
        for device_time in self._device_time(self._timer.take()):
            model.charge(device_time)

    def _device_time(self, seconds: float) -> list[GpuTime]:
        """Return what to charge for this time; a CPU is charged only if the user gave a price."""
        price = self.options.gpu_cost_per_hour_usd
        counts = Counter(
            device.device_name
            for device in charged_devices(self._setup.trainers, self._setup.engine)
            if device.device.type != "cpu" or price is not None
        )
        return [
            GpuTime(device=name, count=count, seconds=seconds, usd_per_hour=price)
            for name, count in counts.items()
        ]
