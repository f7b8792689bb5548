"""A registered model: its policy, trainer, engine, checkpoints and endpoint."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch  # noqa: TID253
from safetensors.torch import load_file, save_file

from art_core import Endpoint, History, TrainResult, Trajectory, TrajectoryGroup
from art_core.base.collector import collector_paused
from art_core.base.errors import BackendError, ConfigError, EngineError
from art_core.endpoint.host import EndpointHost
from art_core.endpoint.supervised import trained_turns
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import staleness
from art_core.rl.sft import sft_batches
from art_local.constraints.grammar import LocalGrammars
from art_local.engine import DeviceLock
from art_local.engine.layer_types import check_servable
from art_local.engine.protocol import LocalEngine, StepWeights
from art_local.engines import EngineChoice, embedded_engine, wait_ready
from art_local.images.support import reading_images
from art_local.models.find import BaseIdentity
from art_local.models.load import (
    Loader,
    cannot_serve,
    load_model,
    load_tokenizer,
    refused_unless_possible,
)
from art_local.models.placement import Placement, placement
from art_local.options import LocalOptions
from art_local.session.changes import check_loss, loss_settings, warn_of_threads
from art_local.session.checkpoints import (
    CHAT_TEMPLATE,
    LOCK_TIMEOUT_S,
    AdapterCard,
    CheckpointStore,
    StoredCheckpoint,
    check_fits,
    has_rank_of,
    read_fitting,
    stored_weights,
    template_for,
)
from art_local.session.endpoint import ServedNames, ServedSteps, check_agreement
from art_local.session.trainers import make_policy, make_trainer, read_trainer, save_trainer
from art_local.training.policy import Policy
from art_local.training.reference import Reference
from art_local.training.trainer import Trainer
from art_local.vllm.pool import SharedEngine

if TYPE_CHECKING:
    from art_core import TrainableModel
    from art_local.session.trainers import StartRanks

log = logging.getLogger("art_local")
RNG = "rng.safetensors"
PACKAGES = ("art-core", "art-local", "torch", "transformers", "peft")


@attrs.frozen(kw_only=True)
class SessionSetup:
    """What the models of a backend have in common: its options and what they mean here.

    `placement` is that of the base model in this process, `trainers` are where it is trained: in
    this process, or by several ranks, which `start_ranks` starts.
    """

    options: LocalOptions
    placement: Placement
    engine: EngineChoice
    card: AdapterCard
    loader: Loader
    chat_template: str | None
    device_lock: DeviceLock
    trainers: Sequence[Placement]
    start_ranks: StartRanks | None = None


class ModelSession:
    """A model that is loaded, served and trained. The backend calls it from its training thread,
    except for `endpoint`, `step` and `store`.
    """

    def __init__(
        self,
        model: TrainableModel,
        identity: BaseIdentity,
        setup: SessionSetup,
        *,
        policy: Policy,
        engine: LocalEngine,
        shared: SharedEngine | None,
        store: CheckpointStore,
        grammars: LocalGrammars,
        chat_template: str | None,
    ) -> None:
        self.model, self.name, self.identity, self.shared = model, model.name, identity, shared
        self.store, self.policy, self.engine = store, policy, engine
        self.step, self._reference_step, self._has_resumed = 0, 0, False
        self._loss: dict[str, Any] = {}
        self._setup, self._tokenizer, self._chat_template = setup, grammars.tokenizer, chat_template
        self._asleep = shared.asleep if shared else engine.asleep
        self.trainer = make_trainer(
            policy,
            setup,
            name=self.name,
            directory=identity.directory,
            run_dir=model.run_dir,
            template=chat_template,
            vocabulary=grammars.vocabulary,
        )
        self.served = ServedSteps(
            engine,
            shared.adapter_name if shared else self.name,
            setup.options.served_steps,
            stored=store.steps,
            read=partial(stored_weights, store, identity, setup, policy),
        )
        names = ServedNames(self.name, identity.name, self.served, grammars)
        self._host = EndpointHost(names, request_timeout_s=setup.options.request_timeout_s)

    @classmethod
    def open(
        cls,
        model: TrainableModel,
        identity: BaseIdentity,
        base: Any,
        setup: SessionSetup,
        shared: SharedEngine | None = None,
        step: int | None = None,
    ) -> ModelSession:
        """Load a model at its last whole checkpoint, or at step 0, over a loaded base; serve it.

        `step` is an older checkpoint to go back to. `shared` is the vLLM engine of the base model;
        without it the model gets an embedded engine. Not to be called inside an event loop. If
        something fails, everything started here is closed.
        """
        store = CheckpointStore(model.run_dir / "checkpoints")
        found = store.newest_whole() if step is None else store.older(step)
        template = template_for(setup.chat_template, found.path if found else None)
        with collector_paused():
            grammars = LocalGrammars.of(load_tokenizer(identity.directory, template), base)
        architecture = type(base).__name__
        if shared is None:
            check_servable(base.config)
        with collector_paused(), refused_unless_possible(architecture, "trained"):
            policy = make_policy(base, identity.directory, setup)
        with collector_paused(), refused_unless_possible(architecture, "served"):
            own = partial(embedded_engine, base, setup.options, setup.device_lock, grammars)
            engine: LocalEngine = shared.engine if shared else own()
            reader = reading_images(base, identity.directory, grammars.tokenizer, policy, engine)
        session: ModelSession | None = None
        try:
            session = cls(
                model,
                identity,
                setup,
                policy=policy,
                engine=engine,
                shared=shared,
                store=store,
                grammars=grammars.rendering(reader),
                chat_template=template,
            )
            session._start(step, found)
        except BaseException:
            if shared is None:
                asyncio.run(engine.close())
            elif session is not None:
                session.served.unload()
            if session is not None and not isinstance(session.trainer, Trainer):
                session.trainer.close()
            raise
        return session

    @property
    def endpoint(self) -> Endpoint:
        """The model's endpoint."""
        return Endpoint(
            base_url=self._host.base_url, api_key=self._host.api_key, model_name=self.name
        )

    async def close(self) -> None:
        """Stop serving and abort requests; an engine that other models use stays open."""
        await asyncio.to_thread(self._host.stop)
        if not isinstance(self.trainer, Trainer):
            await asyncio.to_thread(self.trainer.close)
        if self.shared:
            await asyncio.to_thread(self.served.unload)
        else:
            await self.engine.close()

    def train(self, groups: Sequence[TrajectoryGroup], config: TrainConfig) -> TrainResult:
        """Run one step, serve its weights, write its checkpoint.

        If the step itself fails, the weights stay as they were. If only the checkpoint can't be
        written, the step counts and is served, as the error states. Raises EngineError, with the
        checkpoint written, if the engine does not accept the new weights or has ended.
        """
        batch = training_batch(groups, config, critic=True, images=True, grammars=True)
        before = self.step
        if self._has_resumed:
            check_loss(self._loss, config, before, accept=self._setup.options.accept_changes)
        self._loss, self._has_resumed = loss_settings(config.loss), False

        def work() -> dict[str, float]:
            label, reference = f"train step {before + 1}", self._reference(config)
            return self.trainer.step(batch.sequences, config, label=label, reference=reference)

        return self._trained(work, config, {**batch.metrics, **staleness(batch.sequences, before)})

    def train_sft(
        self, batches: Sequence[Sequence[Trajectory]], config: TrainConfig
    ) -> TrainResult:
        """Run one step of supervised fine-tuning as `train` runs one."""
        found, metrics = sft_batches(batches, self.turns)
        label = f"sft step {self.step + 1}"
        return self._trained(lambda: self.trainer.fit(found, config, label=label), config, metrics)

    def turns(self, history: History) -> Sequence[Any]:
        """Return the turns that are trained of a given conversation. Callable in any thread."""
        return trained_turns(history, self._tokenizer, context_length=self.engine.context_length)

    def _trained(
        self, work: Callable[[], dict[str, float]], config: TrainConfig, of_data: dict[str, float]
    ) -> TrainResult:
        self.engine.check()
        started = time.monotonic()
        before = self.step
        try:
            with self._asleep():
                metrics = of_data | work()
                self.step += 1
            self._publish()
        except BaseException as error:
            if self.step > before and config.save_checkpoint:
                self._save_despite(error)
            raise
        path = self._save() if config.save_checkpoint else None
        metrics["time/step_trainer_s"] = time.monotonic() - started
        metrics |= self.engine.step_metrics()
        return TrainResult(step=self.step, metrics=metrics, checkpoint=path)

    def delete_checkpoints(self, keep: Collection[int]) -> list[int]:
        """Delete checkpoints except those to keep, the newest, those that requests use, and that of
        the last KL penalty.
        """
        kept = {*keep, self._reference_step}
        return self.served.without_leased(lambda leased: self.store.delete(kept | leased))

    def _start(self, step: int | None, found: StoredCheckpoint | None) -> None:
        if self.shared:
            wait_ready(self.shared.engine, progress=self._setup.options.progress)
        self._resume(step, found)
        self._check_agreement()
        self._host.start()
        log.info(
            "model %r on %s, engine %s, %s, %s; served at %s",
            self.name,
            self._setup.placement,
            self._setup.engine,
            self._setup.card,
            f"resumed from checkpoint {self.step}" if self.step else "starting fresh at step 0",
            self._host.base_url,
        )

    def _resume(self, step: int | None, found: StoredCheckpoint | None) -> None:
        """Load and serve a checkpoint, if there is one; with a `step`, set later ones aside.

        Raises ConfigError for a checkpoint of another base model or adapter.
        """
        if found is not None:
            check_fits(found, self.identity, self._setup)
            if self._setup.options.deterministic:
                warn_of_threads(found.manifest)
            self.policy.load(read_fitting(found, self.policy), found.path)
            fits = has_rank_of(found, self.policy)
            read_trainer(self.trainer, found.path, optimizer=fits)
            self._loss = dict(found.manifest.get("loss") or {})
            # not of a fork, which may have another loss
            self._has_resumed = found.manifest.get("model") == self.name
            self.policy.generator.set_state(load_file(found.path / RNG)["generator"])
            self.step = found.step
        if step is not None:
            self.store.abandon_after(step)
        self._publish()

    def _check_agreement(self) -> None:
        """Compare engine and trainer. An embedded engine has the trainer's weights, so a difference
        means that it cannot serve the architecture.
        """
        architecture = type(self.policy.base).__name__
        lock = self._setup.device_lock
        locked = partial(lock.hold, "comparing the engine with the trainer", LOCK_TIMEOUT_S)
        adapter = self.served.adapter(self.step)
        try:
            with refused_unless_possible(architecture, "trained"):
                trainer = self.policy if isinstance(self.trainer, Trainer) else self.trainer
                check_agreement(self.engine, trainer, self._tokenizer, adapter, locked)
        except EngineError as error:
            if self.shared:
                raise
            raise cannot_serve(architecture, error) from error

    def _publish(self) -> None:
        if self.step:
            weights = StepWeights(
                merged=lambda: self.policy.serving,
                write=lambda directory: self.policy.save(directory, self.identity.name),
            )
            self.served.publish(self.step, weights)

    def _reference(self, config: TrainConfig) -> Reference | None:
        step = (config.kl_penalty_reference_step or 0) if config.kl_penalty_coef else 0
        self._reference_step = step
        if not config.kl_penalty_coef:
            return None
        if step and step not in self.store.steps():
            raise ConfigError(
                f"kl_penalty_reference_step is {step}, which has no checkpoint; there are: "
                f"{', '.join(map(str, self.store.steps())) or 'none'}",
                "Leave it out for the base model.",
            )

        def tensors() -> Mapping[str, torch.Tensor] | None:
            if step:
                found = self.store.read(step)
                check_fits(found, self.identity, self._setup)
                return read_fitting(found, self.policy)
            return None if self.policy.is_lora else self._base_weights()

        return tensors

    def _base_weights(self) -> Mapping[str, torch.Tensor]:
        """Return the parameters that full fine-tuning started from, read from disk."""
        self.identity.check_unchanged()
        where = placement("cpu", "float32")
        return dict(load_model(self.identity.directory, where, torch.float32).named_parameters())

    def _save_despite(self, error: BaseException) -> None:
        """Write the checkpoint of a step whose weights the engine did not accept, so that the step
        is not lost. A second error is added to the first as a note.
        """
        try:
            self._save()
        except Exception as second:
            log.error("%s", second)
            error.add_note(str(second))

    def _save(self) -> Path:
        try:
            return self.store.write(self.step, self._fill, self._manifest()).path
        except BackendError as error:
            state = " and" if self.served.newest == self.step else ", not"
            raise BackendError(f"step {self.step} is trained{state} served, but {error}") from error

    def _fill(self, directory: Path) -> None:
        self.policy.save(directory, self.identity.name)
        if not self.policy.is_lora:
            # several templates would be a folder, and a checkpoint is a folder of files
            several = isinstance(self._tokenizer.chat_template, dict)
            self._tokenizer.save_pretrained(directory, save_jinja_files=not several)
        if self._chat_template is not None:
            (directory / CHAT_TEMPLATE).write_text(self._chat_template, encoding="utf-8")
        save_trainer(self.trainer, directory)
        save_file({"generator": self.policy.generator.get_state()}, directory / RNG)

    def _manifest(self) -> dict[str, Any]:
        return {
            "model": self.name,
            **self.identity.manifest(),
            **self._setup.card.manifest(),
            "seed": self._setup.card.seed,
            "dtype": str(self.policy.dtype).removeprefix("torch."),
            "reference_step": self._reference_step,
            "loss": self._loss,
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
