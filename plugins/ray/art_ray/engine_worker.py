"""One replica of the engine: an actor that samples from the base model and adapters of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import ConfigError
from art_core.endpoint.engine import Sampling, Token
from art_local.torch_environment import set_torch_environment
from art_ray.files import MANIFEST, Files, manifest_of, write_files
from art_ray.nodes import ActorPlace, place_here

if TYPE_CHECKING:
    from art_local.engine.protocol import LocalEngine
    from art_local.training.policy import Policy


class AdapterMissingError(Exception):
    """A replica does not have the adapter of a request, because it was started again since."""


@attrs.frozen(kw_only=True)
class EngineSetup:
    """What a replica needs to start: the base model, its fingerprint, and the local backend's
    options.
    """

    base_model: str
    fingerprint: str
    options: Mapping[str, Any] = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class EngineFacts:
    """What a replica knows of its model: the size of its logits, its end tokens, its context."""

    vocabulary: int
    ends: tuple[int, ...]
    context_length: int
    is_rounded: bool
    place: ActorPlace


class EngineWorker:
    """The actor. It loads its model at the first call, also after it was lost and started again."""

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self._opening = asyncio.Lock()
        self._replica: Replica | None = None

    async def facts(self) -> EngineFacts:
        """Return what the replica knows of its model."""
        replica = await self._opened()
        return replica.facts(place_here())

    async def load(self, adapter: str, files: Files) -> ActorPlace:
        """Serve weights under an adapter's name: the files of a checkpoint. Return where the
        replica is, which may have been started again elsewhere.
        """
        replica = await self._opened()
        await asyncio.to_thread(replica.load, adapter, files)
        return place_here()

    async def unload(self, adapter: str) -> None:
        """Stop serving an adapter; running requests finish."""
        (await self._opened()).unload(adapter)

    async def sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> list[Token]:
        """Sample one sequence."""
        return [token async for token in self.stream(prompt_ids, sampling, adapter)]

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> AsyncIterator[Token]:
        """Sample one sequence, token by token."""
        engine = (await self._opened()).engine_of(adapter)
        async with aclosing(engine.generate(prompt_ids, sampling, adapter)) as tokens:
            async for token in tokens:
                yield token

    async def score(self, ids: Sequence[int], adapter: str) -> Sequence[float]:
        """Return the log-probs of a text."""
        return await (await self._opened()).engine_of(adapter).score(ids, adapter)

    async def step_metrics(self) -> dict[str, float]:
        """Return the engine's measurements since the last call."""
        return (await self._opened()).engine.step_metrics()

    async def _opened(self) -> Replica:
        async with self._opening:
            if self._replica is None:
                self._replica = await asyncio.to_thread(Replica.open, self._setup)
            return self._replica


@attrs.define(eq=False)
class Replica:
    """An engine that has started, and the adapters that it has loaded.

    `policy` turns an adapter into merged weights; an engine that is given adapters has none.
    """

    engine: LocalEngine
    policy: Policy | None
    vocabulary: int
    ends: tuple[int, ...]
    _loaded: set[str] = attrs.field(factory=set)

    @classmethod
    def open(cls, setup: EngineSetup) -> Replica:
        """Load the base model; ConfigError if this node has another one than the driver."""
        set_torch_environment()
        from art_local.models import resolve_base_model
        from art_local.models.find import fingerprint

        directory = resolve_base_model(setup.base_model, progress=False)
        if fingerprint(directory) != setup.fingerprint:
            raise ConfigError(
                f"the base model in {directory} on node {place_here().address} is another one than "
                "the driver's",
                "Give each node the same files, or a path on a disk that all share.",
            )
        if setup.options["engine"] == "vllm":
            return cls._vllm(directory, setup.options)
        return cls._embedded(directory, setup.options)

    @classmethod
    def _embedded(cls, directory: Path, given: Mapping[str, Any]) -> Replica:
        from art_local.constraints.grammar import LocalGrammars
        from art_local.engine import DeviceLock
        from art_local.engine.request import end_tokens
        from art_local.engines import embedded_engine
        from art_local.models.load import load_model, load_tokenizer, sharing_parameters
        from art_local.models.placement import placement
        from art_local.options import LocalOptions
        from art_local.training.policy import Policy

        options = LocalOptions(**given)
        where = placement(options.device, options.dtype)
        base = load_model(directory, where, where.dtype)
        grammars = LocalGrammars.of(load_tokenizer(directory, _template(options)), base)
        policy = Policy(
            sharing_parameters(base),
            dtype=where.dtype,
            lora=(options.lora_rank, options.lora_alpha),
            seed=options.seed,
        )
        engine = embedded_engine(base, options, DeviceLock(), grammars)
        return cls(engine, policy, grammars.vocabulary.size, tuple(sorted(end_tokens(base))))

    @classmethod
    def _vllm(cls, directory: Path, given: Mapping[str, Any]) -> Replica:
        from art_local.engines import choose, model_facts, start_vllm, wait_ready
        from art_local.models.placement import placement
        from art_local.options import LocalOptions

        options = LocalOptions(**given)
        # the server has the device for itself: this process keeps no weights
        where = placement("cpu", options.dtype)
        options = attrs.evolve(options, engine_device=options.device or "cuda")
        work = Path(tempfile.mkdtemp(prefix="art-ray-vllm-"))
        engine = start_vllm(choose(options, where), options, where, directory, work)
        wait_ready(engine, progress=False)
        facts = model_facts(directory, None)
        return cls(engine, None, facts.vocabulary, facts.ends)

    def facts(self, place: ActorPlace) -> EngineFacts:
        """Return what the replica knows of its model."""
        return EngineFacts(
            vocabulary=self.vocabulary,
            ends=self.ends,
            context_length=self.engine.context_length,
            is_rounded=self.engine.is_rounded,
            place=place,
        )

    def load(self, adapter: str, files: Files) -> None:
        """Serve the weights of a checkpoint's files. Blocks."""
        from art_local.engine.protocol import StepWeights

        def merged() -> Any:
            assert self.policy is not None
            with tempfile.TemporaryDirectory(prefix="art-ray-") as place:
                return self.policy.serving_of(_fitting(files, Path(place), self.policy))

        weights = StepWeights(merged=merged, write=lambda place: write_files(files, place))
        self.engine.publish(adapter, weights)
        self._loaded.add(adapter)

    def unload(self, adapter: str) -> None:
        """Stop serving an adapter."""
        if adapter in self._loaded:
            self._loaded.discard(adapter)
            self.engine.unload(adapter)

    def engine_of(self, adapter: str) -> LocalEngine:
        """Return the engine; AdapterMissingError if it has not loaded an adapter."""
        from art_local.engine.protocol import BASE

        if adapter != BASE and adapter not in self._loaded:
            raise AdapterMissingError(adapter)
        return self.engine


def _template(options: Any) -> str | None:
    from art_local.options import read_template

    return read_template(options.chat_template)


def _fitting(files: Files, place: Path, policy: Policy) -> Any:
    """Return the parameters in a checkpoint's files, in the policy's rank and alpha."""
    from art_local.session.checkpoints import StoredCheckpoint, read_fitting

    write_files(files, place)
    manifest = manifest_of(files) if MANIFEST in files else {}
    return read_fitting(
        StoredCheckpoint(step=manifest.get("step", 0), path=place, manifest=manifest), policy
    )
