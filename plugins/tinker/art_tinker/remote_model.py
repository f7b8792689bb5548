"""A registered model at the service: its clients, its training steps and its saved states."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import (
    ConfigError,
    History,
    TrainConfig,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
)
from art_core.base.errors import BackendError, unknown
from art_core.endpoint.supervised import trained_turns
from art_core.rl.batch import training_batch
from art_core.rl.sequences import staleness
from art_core.rl.sft import sft_batches
from art_tinker.batches import Minibatch, ServiceLoss, service_loss, sft_windows, windows_of
from art_tinker.costs import TinkerMeter
from art_tinker.metrics import loss_metrics
from art_tinker.samplers import Samplers
from art_tinker.sdk import Connection, RefusedError, settled, tinker
from art_tinker.store import RL, SFT, Identity, Manifest, Manifests

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_tinker")
BETAS = (0.9, 0.99)
EPSILON = 1e-8


@attrs.frozen(kw_only=True)
class RemoteOptions:
    """The backend's options for its models (see `TinkerBackend`)."""

    connection: Connection
    lora_rank: int
    seed: int | None
    context_length: int | None
    tokenizer: str | None
    cached_prefill_per_million: float | None
    register_timeout_s: float
    step_timeout_s: float
    request_timeout_s: float


@attrs.define(kw_only=True, eq=False)
class RemoteModel:
    """A model at the service. `client` is None after a failed step: the state at the service is
    then unknown, and the next step starts from the newest saved state.
    """

    model: TrainableModel
    options: RemoteOptions
    store: Manifests
    service: Any
    samplers: Samplers
    meter: TinkerMeter
    step: int
    client: Any = None
    phase: str = RL
    _lock: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _running: asyncio.Task[TrainResult] | None = attrs.field(default=None, init=False)

    async def train(self, groups: Sequence[TrajectoryGroup], config: TrainConfig) -> TrainResult:
        """Run a step. Cancelling this call does not stop a step that was sent to the service."""
        loss = service_loss(config)
        async with self._lock:
            # A step may still run at the service after its call was cancelled.
            await self._wait()
            batch = training_batch(groups, config)
            windows = windows_of(batch.sequences, config)
            metrics = batch.metrics | staleness(batch.sequences, self.step)
            return await self._run(self._train(windows, metrics, config, loss))

    async def train_sft(
        self, batches: Sequence[Sequence[Trajectory]], config: TrainConfig
    ) -> TrainResult:
        """Run a step of supervised fine-tuning as `train` runs one."""
        loss = service_loss(config)
        async with self._lock:
            await self._wait()
            found, metrics = await asyncio.to_thread(sft_batches, batches, self.turns)
            return await self._run(self._train(sft_windows(found, config), metrics, config, loss))

    def turns(self, history: History) -> Sequence[Any]:
        """Return the turns that are trained of a given conversation. Callable in any thread."""
        samplers = self.samplers
        return trained_turns(history, samplers.tokenizer, context_length=samplers.context_length)

    async def _run(self, step: Coroutine[Any, Any, TrainResult]) -> TrainResult:
        self._running = asyncio.create_task(step)
        return await asyncio.shield(self._running)

    async def idle(self) -> None:
        """Wait until no step runs."""
        async with self._lock:
            await self._wait()

    async def _wait(self) -> None:
        if self._running is not None:
            await asyncio.wait({self._running})

    async def _train(
        self,
        batches: Sequence[Minibatch],
        batch_metrics: dict[str, float],
        config: TrainConfig,
        loss: ServiceLoss,
    ) -> TrainResult:
        start = time.monotonic()
        client = await self._ready_client(SFT if loss.supervised else RL)
        self.client = None
        outputs = await self._computed(client, batches, config, loss)
        metrics = loss_metrics(loss, batches, outputs) if batches else {}
        checkpoint = await self._saved(client, keep=config.save_checkpoint)
        self.client = client
        metrics |= {
            **batch_metrics,
            "data/step_num_gradient_steps": float(len(batches)),
            "loss/learning_rate": config.learning_rate,
            "time/step_trainer_s": time.monotonic() - start,
        }
        return TrainResult(step=self.step, metrics=metrics, checkpoint=checkpoint)

    async def _computed(
        self, client: Any, batches: Sequence[Minibatch], config: TrainConfig, loss: ServiceLoss
    ) -> list[list[Any]]:
        """Run the minibatches at the service, all submitted before the first is waited for. Return
        the trainer's log-probs of each minibatch and datum.
        """
        parameters = tinker().types.AdamParams(
            learning_rate=config.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPSILON,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.max_grad_norm,
        )

        def work() -> list[list[Any]]:
            submitted = [
                (
                    client.forward_backward(
                        batch.data, loss_fn=loss.name, loss_fn_config=loss.config
                    ),
                    client.optim_step(parameters),
                )
                for batch in batches
            ]
            outputs = []
            for batch, (backward, step) in zip(batches, submitted, strict=True):
                found = backward.result()
                computed.append(batch)
                step.result()
                outputs.append([output["logprobs"].to_numpy() for output in found.loss_fn_outputs])
            return outputs

        computed: list[Minibatch] = []
        billed = batches
        try:
            outputs: list[list[Any]] = await self._call(work, f"training step {self.step + 1}")
            return outputs
        except (RefusedError, ConfigError):  # ConfigError: the key is not accepted any more
            billed = computed
            raise
        finally:
            self.meter.trained(sum(batch.tokens for batch in billed))

    async def _saved(self, client: Any, *, keep: bool) -> Path | None:
        """Save the weights and serve them; with `keep` save the state for training, too."""
        step = self.step + 1
        name = f"step-{step:04d}"

        def work() -> tuple[str | None, str]:
            state = client.save_state(name) if keep else None
            sampler = client.save_weights_for_sampler(name)
            return (state.result().path if state else None), sampler.result().path

        state_path, sampler_path = await self._call(work, f"saving step {step}")
        await self.samplers.publish(step, sampler_path)
        checkpoint = None
        if state_path is not None:
            checkpoint = self.store.write(
                Manifest(
                    step=step,
                    base_model=self.model.base_model,
                    lora_rank=self.options.lora_rank,
                    state_path=state_path,
                    sampler_path=sampler_path,
                    phase=self.phase,
                )
            )
        self.step = step
        return checkpoint

    async def _ready_client(self, phase: str) -> Any:
        """Return the training client, with the optimizer's state of a phase: a new phase begins
        with a fresh one.
        """
        if self.client is None:
            newest = self.store.newest()
            at = newest.step if newest else 0
            log.warning("step %d failed; continuing from step %d", self.step + 1, at)
            self.client = await training_client(
                self.service, self.model.base_model, newest, self.options
            )
            # Weights may be served whose step could not be recorded.
            self.step = self.samplers.newest = at
            self.phase = newest.phase if newest else RL
        if phase != self.phase and self.step:
            self.client = await self._with_fresh_optimizer(self.client)
        self.phase = phase
        return self.client

    async def _with_fresh_optimizer(self, client: Any) -> Any:
        def work() -> Any:
            path = client.save_state(f"weights-{self.step:04d}").result().path
            return settled(self.service.create_training_client_from_state(path))

        return await self._call(work, f"beginning a new optimizer after step {self.step}")

    async def _call(self, work: Callable[[], Any], doing: str) -> Any:
        return await self.options.connection.call(work, self.options.step_timeout_s, doing)

    async def delete(self, keep: Sequence[int]) -> list[int]:
        """Delete all saved steps but those in `keep` and the newest, at the service first."""
        unwanted = [step for step in self.store.steps()[:-1] if step not in keep]
        for step in unwanted:
            manifest = self.store.read(step)
            await self._delete_remote(manifest.state_path)
            await self._delete_remote(manifest.sampler_path)
            self.store.delete(step)
            self.samplers.remove(step)
        return unwanted

    async def _delete_remote(self, path: str) -> None:
        def work() -> None:
            client = self.options.connection.rest_client(self.service)
            settled(client.delete_checkpoint_from_tinker_path(path))

        try:
            await self._call(work, f"deleting {path}")
        except BackendError as error:
            cause = error.__cause__
            if isinstance(cause, ValueError):
                # the SDK cannot delete paths of this server
                log.warning("%s; it stays at the service", error)
            elif getattr(cause, "status_code", None) != 404:  # 404: it does not exist any more
                raise


async def open_remote(model: TrainableModel, options: RemoteOptions) -> RemoteModel:
    """Begin a session for a model, at its last saved state or with a fresh adapter.

    Raises ConfigError for a base model that the service does not have, and for a base model or a
    LoRA rank other than the run's.
    """
    store = Manifests(model.run_dir / "checkpoints")
    newest = store.newest()
    if newest is not None:
        newest.check(base_model=model.base_model, lora_rank=options.lora_rank)
    identity = Identity.of(model.run_dir, options.connection.base_url)
    run = f"{model.project}/{model.name}"
    async with options.connection.opened(identity.metadata(run, "train")) as (service, models):
        if models and model.base_model not in models:
            raise ConfigError(
                unknown("base model", model.base_model, models, known_as="the service has")
            )
        client = await training_client(service, model.base_model, newest, options)
        tokenizer = await tokenizer_of(client, options)
        meter = TinkerMeter(model=model, cached_per_million=options.cached_prefill_per_million)
        samplers = Samplers(
            name=model.name,
            base_model=model.base_model,
            tokenizer=tokenizer,
            context_length=context_length(options, models.get(model.base_model), tokenizer),
            connection=options.connection,
            timeout_s=options.register_timeout_s,
            meter=meter,
            metadata={split: identity.metadata(run, split) for split in ("train", "eval")},
            services={"train": service},
            paths={step: store.read(step).sampler_path for step in store.steps()},
            newest=newest.step if newest else 0,
        )
        return RemoteModel(
            model=model,
            options=options,
            store=store,
            service=service,
            samplers=samplers,
            meter=meter,
            step=samplers.newest,
            client=client,
            phase=newest.phase if newest else RL,
        )


async def training_client(
    service: Any, base_model: str, newest: Manifest | None, options: RemoteOptions
) -> Any:
    """Return a training client at a saved state, with its optimizer, or a fresh one."""

    def work() -> Any:
        if newest is not None:
            return settled(
                service.create_training_client_from_state_with_optimizer(newest.state_path)
            )
        return settled(
            service.create_lora_training_client(
                base_model=base_model, rank=options.lora_rank, seed=options.seed
            )
        )

    what = f"a training client of {base_model!r}"
    if newest is not None:
        what += f" at step {newest.step} ({newest.state_path})"
    return await options.connection.call(work, options.register_timeout_s, f"making {what}")


async def tokenizer_of(client: Any, options: RemoteOptions) -> Any:
    """Return the tokenizer in the options, else the one that the service names."""
    name = options.tokenizer

    def work() -> Any:
        if name is None:
            return client.get_tokenizer()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name)

    try:
        return await options.connection.call(
            work, options.register_timeout_s, "loading the tokenizer"
        )
    except BackendError as error:
        raise BackendError(
            str(error), "If the hub cannot be reached, give tokenizer=, a directory or a hub id."
        ) from error


def context_length(options: RemoteOptions, of_service: int | None, tokenizer: Any) -> int:
    """Return the context length of the options, else of the service, else of the tokenizer."""
    of_tokenizer = getattr(tokenizer, "model_max_length", None)
    known = of_tokenizer if of_tokenizer and of_tokenizer < 10**7 else 32_768
    return options.context_length or of_service or int(known)
