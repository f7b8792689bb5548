"""A registered model: its training client, the step it is at, and the states of each step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import ConfigError, TrainConfig, TrainResult, TrajectoryGroup
from art_core.base.errors import BackendError, unknown
from art_core.rl.batch import training_batch
from art_core.rl.sequences import TokenSequence, staleness
from art_tinker.batches import ServiceLoss, Window, service_loss, windows_of
from art_tinker.clients import SeatOptions, context_length, tokenizer_of, training_client
from art_tinker.costs import Meter
from art_tinker.metrics import loss_metrics
from art_tinker.samplers import Samplers
from art_tinker.sdk import RefusedError, settled, tinker
from art_tinker.store import Identity, Manifest, Manifests

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_tinker")
BETAS = (0.9, 0.99)
EPSILON = 1e-8


@attrs.define(kw_only=True, eq=False)
class Seat:
    """A model at the service. `client` is None after a step that failed: what the service then
    holds is not known, and the next step starts from the newest state that was saved.
    """

    model: TrainableModel
    options: SeatOptions
    store: Manifests
    service: Any
    samplers: Samplers
    meter: Meter
    step: int
    client: Any = None
    _busy: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _under_way: asyncio.Task[TrainResult] | None = attrs.field(default=None, init=False)

    async def train(self, groups: Sequence[TrajectoryGroup], config: TrainConfig) -> TrainResult:
        """Run a step. Cancelling stops the waiting: the step is finished, or was not begun."""
        loss = service_loss(config)
        async with self._busy:
            # the service has been told, and is not stopped by nobody waiting here
            await self._finished()
            batch = training_batch(groups, config)
            self._under_way = asyncio.create_task(
                self._train(batch.sequences, batch.metrics, config, loss)
            )
            return await asyncio.shield(self._under_way)

    async def idle(self) -> None:
        """Wait for the step under way."""
        async with self._busy:
            await self._finished()

    async def _finished(self) -> None:
        if self._under_way is not None:
            await asyncio.wait({self._under_way})

    async def _train(
        self,
        sequences: Sequence[TokenSequence],
        counted: dict[str, float],
        config: TrainConfig,
        loss: ServiceLoss,
    ) -> TrainResult:
        start = time.monotonic()
        client = await self._ready_client()
        windows = windows_of(sequences, config)
        self.client = None
        outputs = await self._computed(client, windows, config, loss)
        metrics = loss_metrics(loss, windows, outputs) if windows else {}
        behind = staleness(sequences, self.step)
        checkpoint = await self._saved(client, keep=config.save_checkpoint)
        self.client = client
        metrics |= {
            **counted,
            **behind,
            "data/step_num_gradient_steps": float(len(windows)),
            "loss/learning_rate": config.learning_rate,
            "time/step_trainer_s": time.monotonic() - start,
        }
        return TrainResult(step=self.step, metrics=metrics, checkpoint=checkpoint)

    async def _computed(
        self, client: Any, windows: Sequence[Window], config: TrainConfig, loss: ServiceLoss
    ) -> list[list[Any]]:
        """Have the service compute and step, all submitted before any is waited for; return the
        trainer's log-probs of each window and datum.
        """
        parameters = tinker().types.AdamParams(
            learning_rate=config.learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPSILON,
            weight_decay=0.0,
            grad_clip_norm=config.max_grad_norm,
        )

        def work() -> list[list[Any]]:
            submitted = [
                (
                    client.forward_backward(
                        window.data, loss_fn=loss.name, loss_fn_config=loss.config
                    ),
                    client.optim_step(parameters),
                )
                for window in windows
            ]
            outputs = []
            for window, (backward, step) in zip(windows, submitted, strict=True):
                found = backward.result()
                computed.append(window)
                step.result()
                outputs.append([output["logprobs"].to_numpy() for output in found.loss_fn_outputs])
            return outputs

        computed: list[Window] = []
        owed = windows
        try:
            outputs: list[list[Any]] = await self._call(work, f"training step {self.step + 1}")
            return outputs
        except (RefusedError, ConfigError):  # that is a key which is not taken any more
            owed = computed
            raise
        finally:
            self.meter.trained(sum(window.tokens for window in owed))

    async def _saved(self, client: Any, *, keep: bool) -> Path | None:
        """Save the weights for sampling, and with `keep` the state to train on from; serve them."""
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
                )
            )
        self.step = step
        return checkpoint

    async def _ready_client(self) -> Any:
        if self.client is None:
            newest = self.store.newest()
            at = newest.step if newest else 0
            log.warning("step %d did not end well; going on from step %d", self.step + 1, at)
            self.client = await training_client(
                self.service, self.model.base_model, newest, self.options
            )
            # also where they differ: weights may be served whose step could not be noted
            self.step = self.samplers.newest = at
        return self.client

    async def _call(self, work: Callable[[], Any], doing: str) -> Any:
        return await self.options.connection.call(work, self.options.step_timeout_s, doing)

    async def delete(self, keep: Sequence[int]) -> list[int]:
        """Delete all kept steps but those and the newest, at the service first."""
        gone = [step for step in self.store.steps()[:-1] if step not in keep]
        for step in gone:
            manifest = self.store.read(step)
            await self._delete_remote(manifest.state_path)
            await self._delete_remote(manifest.sampler_path)
            self.store.delete(step)
            self.samplers.forget(step)
        return gone

    async def _delete_remote(self, path: str) -> None:
        def work() -> None:
            rest = self.options.connection.rest(self.service)
            settled(rest.delete_checkpoint_from_tinker_path(path))

        try:
            await self._call(work, f"deleting {path}")
        except BackendError as error:
            why = error.__cause__
            if isinstance(why, ValueError):
                # a server whose paths the SDK does not know how to delete
                log.warning("%s; it stays at the service", error)
            elif getattr(why, "status_code", None) != 404:  # it is gone already
                raise


async def take_seat(model: TrainableModel, options: SeatOptions) -> Seat:
    """Begin a session for a model; have it at its last saved state, or fresh.

    Raises ConfigError for a base model that the service has not, and for another base model or
    LoRA rank than the run's.
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
        meter = Meter(model=model, cached_per_million=options.cached_prefill_per_million)
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
        return Seat(
            model=model,
            options=options,
            store=store,
            service=service,
            samplers=samplers,
            meter=meter,
            step=samplers.newest,
            client=client,
        )
