"""A registered model: its trainer and its engines in the cluster, its checkpoints and its endpoint
here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from art_core import (
    BackendError,
    ConfigError,
    Endpoint,
    GpuTime,
    History,
    TrainConfig,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
)
from art_core.endpoint.host import EndpointHost
from art_core.endpoint.supervised import trained_turns
from art_local.constraints.grammar import LocalGrammars
from art_local.engine.protocol import StepWeights
from art_local.models.find import BaseIdentity
from art_local.models.load import load_tokenizer
from art_local.options import read_template
from art_local.session.checkpoints import (
    ADAPTER_FILES,
    AdapterCard,
    CheckpointStore,
    StoredCheckpoint,
    template_for,
)
from art_local.session.endpoint import ServedNames, ServedSteps
from art_local.session.gpu_timer import GpuTimer
from art_ray.actors import LOST, first_line, persistent, result
from art_ray.cluster import Reservation
from art_ray.engine_worker import EngineFacts, EngineSetup, EngineWorker
from art_ray.engines import RayEngine
from art_ray.files import (
    MANIFEST,
    Files,
    about,
    packed_batches,
    packed_groups,
    read_files,
    without_manifest,
    write_files,
)
from art_ray.nodes import ActorPlace, device_times, names, reach_directly
from art_ray.options import RayOptions
from art_ray.trainer_worker import ModelIdentity, NotOpenError, TrainedStep, TrainerWorker

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_ray")
SERVED_FILES = (*ADAPTER_FILES, MANIFEST)
"""The files of a checkpoint that engines need."""


class RaySession:
    """A model in the cluster. The backend calls it from its own thread, except for `endpoint`,
    `step`, `turns` and `store`.
    """

    def __init__(
        self, model: TrainableModel, identity: BaseIdentity, options: RayOptions, host: str
    ) -> None:
        self.model, self.name, self.identity = model, model.name, identity
        self.store = CheckpointStore(model.run_dir.resolve() / "checkpoints")
        self.step = 0
        self._options, self._host_address = options, host
        self._unsaved: Files | None = None
        self._needed: set[int] = set()
        self._restarts = 0
        self._timer = GpuTimer()
        self._closing: list[Callable[[], Any]] = []

    def open(self, step: int | None) -> None:
        """Start trainer and engines at the last whole checkpoint, or at `step`, and serve them. If
        something fails, everything started here is closed.
        """
        try:
            self._open(step)
        except BaseException:
            self.close()
            raise

    def _open(self, step: int | None) -> None:
        options = self._options
        found = self.store.newest_whole() if step is None else self.store.older(step)
        if found is not None:
            self._check_fits(found)
        stored = None if found is None else found.path
        template = template_for(read_template(options.chat_template), stored)
        local = options.local(chat_template=template, progress=False)
        tokenizer = load_tokenizer(self.identity.directory, template)
        reservation, trainer, engines = self._actors(local)
        reservation.wait(options.start_timeout_s)
        self._timer.start()
        self._trainer = trainer
        self._template = template
        files = None if found is None else read_files(found.path)
        opening = self._opening(0 if found is None else found.step, files)
        facts = self._facts(engines)
        self.step, self._trainer_place = self._opened(opening)
        self.engine = RayEngine(engines, facts, options.request_timeout_s)
        self._closing.append(lambda: asyncio.run(self.engine.close()))
        self.served = ServedSteps(
            self.engine,
            self.name,
            options.served_steps,
            stored=self.store.steps,
            read=lambda number: _weights(read_files(self.store.read(number).path)),
        )
        self._tokenizer = tokenizer
        grammars = LocalGrammars(tokenizer, facts[0].vocabulary, facts[0].ends)
        names_here = ServedNames(self.name, self.identity.name, self.served, grammars)
        self._host = EndpointHost(
            names_here, host=self._host_address, request_timeout_s=options.request_timeout_s
        )
        if step is not None:
            self.store.abandon_after(step)
        if files is not None:
            self.served.publish(self.step, _weights(files))
        self._host.start()
        self._closing.append(self._host.stop)
        reach_directly(self._host.base_url)
        log.info(
            "model %r: trainer on %s, %d engines on %s, step %d; served at %s",
            self.name, self._trainer_place.address, len(engines), names(self.engine.places),
            self.step, self._host.base_url,
        )  # fmt: skip

    @property
    def endpoint(self) -> Endpoint:
        """The model's endpoint."""
        return Endpoint(
            base_url=self._host.base_url, api_key=self._host.api_key, model_name=self.name
        )

    def close(self) -> None:
        """Stop serving, end the actors, give their resources back. A second call does nothing."""
        while self._closing:
            self._closing.pop()()

    def train(
        self, groups: Sequence[TrajectoryGroup], config: TrainConfig, options: Mapping[str, Any]
    ) -> TrainResult:
        """Run one step in the cluster, serve its weights, write its checkpoint here.

        If the trainer's node is lost, the step is run again from the weights before it.
        """
        values = ray.put(packed_groups(groups))
        needed = self._reference(config)
        self._needed = set(needed)

        def call() -> Any:
            return self._trainer.train.remote(values, options, needed)

        return self._trained(call, config)

    def train_sft(
        self,
        batches: Sequence[Sequence[Trajectory]],
        config: TrainConfig,
        options: Mapping[str, Any],
    ) -> TrainResult:
        """Run one step of supervised fine-tuning as `train` runs one."""
        values = ray.put(packed_batches(batches))
        return self._trained(lambda: self._trainer.train_sft.remote(values, options), config)

    def turns(self, history: History) -> Sequence[Any]:
        """Return the turns that are trained of a given conversation. Callable in any thread."""
        return trained_turns(history, self._tokenizer, context_length=self.engine.context_length)

    def delete_checkpoints(self, keep: Collection[int]) -> list[int]:
        """Delete checkpoints except those to keep, the newest, those that requests use, and that of
        the last KL penalty.
        """
        kept = {*keep, *self._needed}
        return self.served.without_leased(lambda leased: self.store.delete(kept | leased))

    def places(self) -> list[ActorPlace]:
        """Return where the trainer is, then each replica, when last heard of."""
        return [self._trainer_place, *self.engine.places]

    def device_times(self, *, seconds: float | None = None) -> list[GpuTime]:
        """Return what the model's nodes were held for since the last call, or for `seconds`."""
        return device_times(
            self.places(),
            self._timer.take() if seconds is None else seconds,
            node_usd_per_hour=self._options.node_usd_per_hour,
            gpu_usd_per_hour=self._options.gpu_cost_per_hour_usd,
        )

    def _trained(self, call: Callable[[], Any], config: TrainConfig) -> TrainResult:
        self.engine.check()
        started = time.monotonic()
        trained: TrainedStep = self._persistently(call)
        metrics = dict(trained.metrics)
        self.step = trained.step
        files = trained.files
        # kept before it is served: a step that was trained is not lost
        self._unsaved = None if config.save_checkpoint else files
        path, failure = None, None
        if config.save_checkpoint:
            try:
                path = self._save(trained)
            except BackendError as error:
                self._unsaved, failure = files, error
        self.served.publish(self.step, _weights(files))
        if failure is not None:
            raise BackendError(
                f"step {self.step} is trained and served, but {failure}"
            ) from failure
        metrics["time/step_trainer_s"] = time.monotonic() - started
        restarts, self._restarts = self._restarts, 0
        metrics |= {
            **self.engine.step_metrics(),
            "throughput/trainer_restarts": float(restarts),
        }
        return TrainResult(step=self.step, metrics=metrics, checkpoint=path)

    def _persistently(self, call: Callable[[], Any]) -> TrainedStep:
        """Run a step, again if the trainer is lost meanwhile."""
        allowed = self._options.parts()[0].max_restarts
        lost = 0
        while True:
            try:
                trained: TrainedStep = result(call())
                return trained
            except (*LOST, NotOpenError) as error:
                lost += 1
                self._restarts += 1
                if allowed != -1 and lost > allowed:
                    raise BackendError(
                        f"the trainer was lost {lost} times in one step: {first_line(error)}",
                        "The step was not trained. Look at the nodes, or raise trainer="
                        "{'max_restarts': ...}.",
                    ) from error
                log.warning(
                    "the trainer is lost in step %d: %s. It starts again, and the step is run "
                    "again from step %d",
                    self.step + 1, first_line(error), self.step,
                )  # fmt: skip
                self._reopen()

    def _reopen(self) -> None:
        """Load the newest weights in the trainer that Ray starts again."""
        files = self._unsaved
        if files is None and self.step:
            files = read_files(self.store.read(self.step).path)
        step, self._trainer_place = self._opened(self._opening(self.step, files))
        if step != self.step:
            raise BackendError(f"the trainer came back at step {step}, not at {self.step}")

    def _opening(self, step: int, files: Files | None) -> Callable[[], Any]:
        identity = ModelIdentity(
            name=self.name, project=self.model.project, base_model=self._base_name()
        )
        stored = None if files is None else ray.put(files)
        return lambda: self._trainer.open.remote(identity, step, stored)

    def _opened(self, opening: Callable[[], Any]) -> tuple[int, ActorPlace]:
        found: tuple[int, ActorPlace] = persistent(
            opening, self._options.start_timeout_s, "the trainer"
        )
        return found

    def _facts(self, engines: Sequence[Any]) -> list[EngineFacts]:
        # asked at the same time: each loads its model
        asked = [engine.facts.remote() for engine in engines]
        waiting = [iter([first]) for first in asked]

        def call(number: int) -> Any:
            return next(waiting[number], None) or engines[number].facts.remote()

        timeout = self._options.start_timeout_s
        return [
            persistent(partial(call, number), timeout, f"replica {number} of the engine")
            for number in range(len(engines))
        ]

    def _actors(self, local: Mapping[str, Any]) -> tuple[Reservation, Any, list[Any]]:
        trainer, engines, _ = self._options.parts()
        bundles = [trainer.bundle(), *[engines.bundle()] * engines.replicas]
        reservation = Reservation(bundles, self._options.strategy)
        self._closing.append(reservation.release)
        setup = EngineSetup(
            base_model=self._base_name(),
            fingerprint=self.identity.fingerprint,
            options={**local, "engine": self._options.engine_name()},
        )
        of_trainer = {
            **local, "engine": "transformers", "engine_args": None, "engine_timeouts": None,
            **trainer.devices(),
        }  # fmt: skip
        actor = (
            ray.remote(TrainerWorker)
            .options(
                **trainer.requested(),
                max_restarts=trainer.max_restarts,
                scheduling_strategy=reservation.scheduling(0),
            )
            .remote(of_trainer)
        )
        self._closing.append(lambda: ray.kill(actor))
        replicas = [
            ray.remote(EngineWorker)
            .options(
                **engines.requested(),
                max_restarts=engines.max_restarts,
                scheduling_strategy=reservation.scheduling(number + 1),
            )
            .remote(setup)
            for number in range(engines.replicas)
        ]
        self._closing += [partial(ray.kill, replica) for replica in replicas]
        return reservation, actor, replicas

    def _base_name(self) -> str:
        """Return the base model's name for other nodes: an absolute path, if it is a directory."""
        directory = Path(self.identity.name).expanduser()
        return str(directory.resolve()) if directory.is_dir() else self.identity.name

    def _check_fits(self, found: StoredCheckpoint) -> None:
        given = self._options
        card = AdapterCard(
            lora=(given.lora_rank, given.lora_alpha),
            seed=given.seed,
            accept_changes=given.accept_changes,
        )
        self.identity.check(found.path, found.manifest)
        card.check(found)

    def _reference(self, config: TrainConfig) -> dict[int, Files]:
        """Return the checkpoint that a step's KL penalty reads, if it reads one."""
        step = config.kl_penalty_reference_step or 0
        if not config.kl_penalty_coef or not step:
            return {}
        if step not in self.store.steps():
            raise ConfigError(
                f"kl_penalty_reference_step is {step}, which has no checkpoint; there are: "
                f"{', '.join(map(str, self.store.steps())) or 'none'}",
                "Leave it out for the base model.",
            )
        return {step: read_files(self.store.read(step).path)}

    def _save(self, trained: TrainedStep) -> Path:
        files = trained.files
        fill = partial(write_files, without_manifest(files))
        return self.store.write(trained.step, fill, about(files)).path


def _weights(files: Files) -> StepWeights:
    """Return a checkpoint's weights in the form in which they travel: as files."""
    served = {name: files[name] for name in SERVED_FILES if name in files}
    return StepWeights(merged=dict, write=partial(write_files, served))
