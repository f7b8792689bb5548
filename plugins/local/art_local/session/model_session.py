"""A registered model with what serves it: weights, engine and endpoint, made together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch  # noqa: TID253

from art_core import Endpoint
from art_core.base.errors import EngineError
from art_core.endpoint.host import EndpointHost
from art_local.engine import DeviceTurns, TransformersEngine
from art_local.engine.layer_types import check_servable
from art_local.engine.protocol import LocalEngine
from art_local.engines import EngineChoice, wait_ready
from art_local.models.chat_template import load_tokenizer, template_for
from art_local.models.identity import BaseIdentity
from art_local.models.load import PLAIN, Loader
from art_local.models.placement import Placement
from art_local.models.supported import cannot_serve, refused_unless_possible
from art_local.session.adapter_card import Recipe
from art_local.session.checkpoints import CheckpointStore
from art_local.session.endpoint import ServedNames
from art_local.session.probe import check_agreement
from art_local.session.resident import Resident, sharing_parameters
from art_local.training.checkpointing import AUTO
from art_local.training.policy import Policy
from art_local.vllm.engine import VllmEngine

if TYPE_CHECKING:
    from art_core import TrainableModel

log = logging.getLogger("art_local")


@attrs.frozen(kw_only=True)
class SeatOptions:
    """What the backend's options say about each of its models (see `LocalBackend`)."""

    placement: Placement
    engine: EngineChoice
    recipe: Recipe
    max_batch_size: int
    context_length: int | None
    served_steps: int
    request_timeout_s: float
    progress: bool
    chat_template: str | None = None
    activation_checkpointing: bool | str = AUTO
    loader: Loader = PLAIN


@attrs.frozen(kw_only=True, eq=False)
class SharedEngine:
    """A base model's engine, the name that this model's adapters have in it, and how it and the
    others of the backend free a device that the trainer has too.
    """

    engine: VllmEngine
    adapter_name: str
    resting: Callable[[], AbstractContextManager[None]]


@attrs.frozen(kw_only=True, eq=False)
class Seat:
    """A model's place in the backend."""

    model: TrainableModel
    resident: Resident
    host: EndpointHost
    shared: SharedEngine | None

    @property
    def endpoint(self) -> Endpoint:
        """Where the model is served."""
        return Endpoint(
            base_url=self.host.base_url, api_key=self.host.api_key, model_name=self.resident.name
        )

    def uses(self, engine: LocalEngine) -> bool:
        """Tell whether this model is served by that engine."""
        return self.resident.engine is engine

    async def close(self) -> None:
        """Stop serving; requests under way are cut off. An engine that others use, too, stays."""
        await asyncio.to_thread(self.host.stop)
        if self.shared:
            await asyncio.to_thread(self.resident.unload)
        else:
            await self.resident.engine.close()


def take_seat(
    model: TrainableModel,
    identity: BaseIdentity,
    base: Any,
    options: SeatOptions,
    turns: DeviceTurns,
    shared: SharedEngine | None = None,
    step: int | None = None,
) -> Seat:
    """Load a model at its last whole checkpoint, or fresh, over a loaded base; serve it.

    `step` is an older checkpoint to go back to. `shared` is the engine of the base model where it
    has one; without it the model gets an embedded engine. Runs outside of any event loop. What was
    started is closed again when something fails.
    """
    store = CheckpointStore(model.run_dir / "checkpoints")
    template = template_for(options.chat_template, store.newest(step))
    tokenizer = load_tokenizer(identity.directory, template)
    architecture = type(base).__name__
    if shared is None:
        check_servable(base.config)
    with refused_unless_possible(architecture, "trained"):
        policy = _policy(base, identity.directory, options)
    with refused_unless_possible(architecture, "served"):
        engine: LocalEngine = shared.engine if shared else _embedded(base, options, turns)
    resident: Resident | None = None
    try:
        resident = Resident(
            name=model.name,
            base=identity,
            store=store,
            policy=policy,
            engine=engine,
            turns=turns,
            recipe=options.recipe,
            tokenizer=tokenizer,
            chat_template=template,
            kept_steps=options.served_steps,
            progress=options.progress,
            adapter_name=shared.adapter_name if shared else None,
            resting=shared.resting if shared else None,
        )
        if shared:
            wait_ready(shared.engine, progress=options.progress)
        resumed = resident.resume(step)
        _check_agreement(resident, tokenizer, turns, embedded=shared is None)
        names = ServedNames(resident, tokenizer)
        host = EndpointHost(names, request_timeout_s=options.request_timeout_s).start()
    except BaseException:
        if shared is None:
            asyncio.run(engine.close())
        elif resident is not None:
            resident.unload()
        raise
    log.info(
        "model %r on %s, engine %s, %s, %s; served at %s",
        model.name,
        options.placement,
        options.engine,
        options.recipe,
        f"resumed from checkpoint {resumed}" if resumed else "starting fresh at step 0",
        host.base_url,
    )
    return Seat(model=model, resident=resident, host=host, shared=shared)


def _check_agreement(
    resident: Resident, tokenizer: Any, turns: DeviceTurns, *, embedded: bool
) -> None:
    """Compare engine and trainer. An embedded engine has the trainer's weights: where it differs,
    it cannot serve the architecture.
    """
    architecture = type(resident.policy.base).__name__
    turn = partial(turns.take, "comparing the engine with the trainer")
    try:
        with refused_unless_possible(architecture, "trained"):
            check_agreement(
                resident.engine, resident.policy, tokenizer, resident.newest_adapter, turn
            )
    except EngineError as error:
        if not embedded:
            raise
        raise cannot_serve(architecture, error) from error


def _embedded(base: Any, options: SeatOptions, turns: DeviceTurns) -> TransformersEngine:
    engine = TransformersEngine(
        base,
        turns=turns,
        max_batch_size=options.max_batch_size,
        request_timeout_s=options.request_timeout_s,
    )
    if options.context_length is not None:
        engine.context_length = min(engine.context_length, options.context_length)
    return engine


def _policy(base: Any, directory: Path, options: SeatOptions) -> Policy:
    placement, recipe = options.placement, options.recipe
    if recipe.lora is None:
        learner = options.loader.base(directory, placement, torch.float32)
    else:
        learner = sharing_parameters(base)
    return Policy(
        learner,
        dtype=placement.dtype,
        lora=recipe.lora,
        seed=recipe.seed,
        loader=options.loader,
        # the policy that is trained is the one that is sampled from: vLLM does not merge
        merged=options.engine.name != "vllm",
        activation_checkpointing=options.activation_checkpointing,
    )
