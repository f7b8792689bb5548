"""The steps of a model that its engine has loaded, and their names in requests.

Before the first request, engine and trainer are compared by their log-probs.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, Protocol

import attrs
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Sampling, ServedModel, Token
from art_local.constraints.grammar import LocalGrammars
from art_local.engine.protocol import BASE, LocalEngine, StepWeights

Lock = Callable[[], AbstractContextManager[Any]]
TEXT = "The quick brown fox jumps over the lazy dog; then it counts: one, two, three,"
TOKENS = {torch.float32: 8, torch.bfloat16: 24}
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 0.25}
"""Limits of the mean difference over so many tokens. In fp32 rounding causes 1e-5. In bf16 it
causes 0.03 to 0.08, sometimes more with so few tokens; other weights cause 0.3 and more.
"""


class Lease:
    """Keeps a step's adapter loaded as long as this object is referenced."""

    __slots__ = ("__weakref__", "adapter")

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter


class LeasedEngine:
    """An engine with the lease of the adapter that its requests name.

    The endpoint references it, and so the lease, from a request's arrival to its last token.
    """

    def __init__(self, engine: LocalEngine, lease: Lease) -> None:
        self._engine, self._lease = engine, lease
        self.context_length = engine.context_length

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str, **options: Any
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.ImageEngine`."""
        return self._engine.generate(prompt_ids, sampling, adapter, **options)

    async def score(self, ids: Sequence[int], adapter: str) -> Sequence[float]:
        """Return the log-probs of a text; see `art_core.endpoint.engine.ScoringEngine`."""
        return await self._engine.score(ids, adapter)

    async def close(self) -> None:
        """Do nothing: the owner of the engine closes it."""


@attrs.define(eq=False)
class _Loaded:
    adapter: str
    leases: weakref.WeakSet[Lease] = attrs.field(factory=weakref.WeakSet)


class LoadedSteps:
    """The steps that an engine has loaded: at most `limit`, the least recently used are unloaded.

    The newest step and leased steps stay loaded, also beyond the limit. Thread-safe.
    """

    def __init__(self, limit: int, unload: Callable[[str], None]) -> None:
        self._limit, self._unload = limit, unload
        self._lock = threading.Lock()
        self._steps: OrderedDict[int, _Loaded] = OrderedDict()

    def lease(self, step: int) -> Lease | None:
        """Lease a loaded step, now the most recently used; None if it is not loaded."""
        with self._lock:
            found = self._steps.get(step)
            if found is None:
                return None
            self._steps.move_to_end(step)
            lease = Lease(found.adapter)
            found.leases.add(lease)
            return lease

    def add(self, step: int, adapter: str, newest: int) -> None:
        """Add a step that was loaded, and unload steps beyond the limit."""
        with self._lock:
            self._steps[step] = self._steps.get(step) or _Loaded(adapter)
            self._steps.move_to_end(step)
            removed = self._pop_excess(protected={step, newest})
        for adapter_name in removed:
            self._unload(adapter_name)

    def steps(self) -> list[int]:
        """Return the loaded steps."""
        with self._lock:
            return list(self._steps)

    def leased(self) -> set[int]:
        """Return the steps that are leased."""
        with self._lock:
            return {step for step, loaded in self._steps.items() if loaded.leases}

    def clear(self) -> None:
        """Unload all steps, leased or not."""
        with self._lock:
            removed = [loaded.adapter for loaded in self._steps.values()]
            self._steps.clear()
        for adapter in removed:
            self._unload(adapter)

    def _pop_excess(self, protected: set[int]) -> list[str]:
        free = [
            step
            for step, loaded in self._steps.items()
            if step not in protected and not loaded.leases
        ]
        excess = max(len(self._steps) - self._limit, 0)
        return [self._steps.pop(step).adapter for step in free[:excess]]


class ServedSteps:
    """The steps of one model that its engine can serve.

    - `adapter_name`: of the model's adapters in the engine; step 3 is `<adapter_name>@3`.
    - `limit`: steps that stay loaded.
    - `stored()` returns the steps with a checkpoint; `read(step)` their weights.
    """

    def __init__(
        self,
        engine: LocalEngine,
        adapter_name: str,
        limit: int,
        *,
        stored: Callable[[], Sequence[int]],
        read: Callable[[int], StepWeights],
    ) -> None:
        self.engine = engine
        self.newest = 0
        self._adapter_name, self._stored, self._read = adapter_name, stored, read
        self._loading = threading.RLock()
        self._loaded = LoadedSteps(limit, engine.unload)

    def adapter(self, step: int) -> str:
        """Return the engine's name for a step's weights."""
        return f"{self._adapter_name}@{step}" if step else BASE

    def publish(self, step: int, weights: StepWeights) -> None:
        """Serve new weights; from then on the model's bare name means this step."""
        self._load(step, weights, newest=step)
        self.newest = step

    def loaded_lease(self, step: int) -> Lease | None:
        """Lease a loaded step; None if it has to be loaded first."""
        return Lease(BASE) if step == 0 else self._loaded.lease(step)

    def lease(self, step: int) -> Lease:
        """Lease a step, loading it from its checkpoint if needed.

        Raises KeyError for a step that is neither loaded nor stored.
        """
        with self._loading:
            while (lease := self.loaded_lease(step)) is None:
                if step not in self._stored():
                    raise KeyError(self.adapter(step))
                self._load(step, self._read(step), newest=self.newest)
        return lease

    def available(self) -> list[int]:
        """Return the steps that can be requested by name."""
        return sorted({self.newest, *self._loaded.steps(), *self._stored()})

    def without_leased(self, delete: Callable[[set[int]], list[int]]) -> list[int]:
        """Delete checkpoints, given the steps that requests use. None is read meanwhile."""
        with self._loading:
            return delete(self._loaded.leased())

    def unload(self) -> None:
        """Unload all steps of this model."""
        self._loaded.clear()

    def _load(self, step: int, weights: StepWeights, newest: int) -> None:
        # locked until excess steps are unloaded: another thread may request one at that moment
        with self._loading:
            self.engine.publish(self.adapter(step), weights)
            self._loaded.add(step, self.adapter(step), newest)


@attrs.frozen
class ServedNames:
    """Resolves the model names of requests: `name` is the newest step when the request arrives,
    `name@step` that step, the base model's name the untrained weights. A request keeps the weights
    that it started with.
    """

    name: str
    base_model: str
    steps: ServedSteps
    grammars: LocalGrammars

    def names(self) -> Sequence[str]:
        """Return the names to list."""
        steps = sorted({0, *self.steps.available()}, reverse=True)
        return [self.name, *(f"{self.name}@{step}" for step in steps), self.base_model]

    async def resolve(self, name: str) -> ServedModel:
        """Return the model of a name; older steps are loaded first. KeyError if it is unknown."""
        if name == self.base_model and name != self.name:
            return self._served(await self._lease(0), name, None)
        step = self._step(name)
        return self._served(await self._lease(step), f"{self.name}@{step}", step)

    async def _lease(self, step: int) -> Lease:
        lease = self.steps.loaded_lease(step)
        return await asyncio.to_thread(self.steps.lease, step) if lease is None else lease

    def _step(self, name: str) -> int:
        if name == self.name:
            return self.steps.newest
        stem, at, step = name.rpartition("@")
        if not at or stem != self.name or not step.isdecimal():
            raise KeyError(name)
        return int(step)

    def _served(self, lease: Lease, name: str, step: int | None) -> ServedModel:
        return ServedModel(
            engine=LeasedEngine(self.steps.engine, lease),
            tokenizer=self.grammars.tokenizer,
            adapter=lease.adapter,
            name=name,
            policy_version=step,
            images_refused=self.steps.engine.images_refused,
            grammars=self.grammars,
            biases=True,
        )


@attrs.frozen(kw_only=True)
class Agreement:
    """The difference of the engine's and the trainer's log-probs of the same tokens, in nats."""

    mean: float
    largest: float
    tokens: int


class Scorer(Protocol):
    """What computes log-probs as a trainer does: a policy, or ranks."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""

    def logprobs(
        self, ids_BS: Tensor, rows_R: Tensor, targets_R: Tensor, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs [R] and entropies [R] of the targets after flat positions."""


def compare(
    engine: LocalEngine,
    policy: Scorer,
    prompt_ids: Sequence[int],
    adapter: str,
    lock: Lock = nullcontext,
) -> Agreement:
    """Sample from the engine, then compute the same tokens' log-probs in the trainer, under `lock`.

    Blocks; not to be called inside an event loop.
    """
    tokens = asyncio.run(_sampled(engine, prompt_ids, adapter, TOKENS[policy.dtype]))
    ids = [*prompt_ids, *(token.id for token in tokens)]
    device = policy.device
    ids_S = torch.tensor(ids, device=device)
    rows_R = torch.arange(len(prompt_ids) - 1, len(ids) - 1, device=device)
    with lock(), torch.no_grad():
        logprobs_R, _ = policy.logprobs(ids_S[None], rows_R, ids_S[rows_R + 1], chunk_size=256)
    engine_R = torch.tensor([token.logprob for token in tokens])
    difference_R = (logprobs_R.float().cpu() - engine_R).abs()
    return Agreement(
        mean=float(difference_R.mean()), largest=float(difference_R.max()), tokens=len(tokens)
    )


def check_agreement(
    engine: LocalEngine, policy: Scorer, tokenizer: Any, adapter: str, lock: Lock = nullcontext
) -> Agreement:
    """Raise EngineError if engine and trainer do not have the same model."""
    prompt_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    room = engine.context_length - TOKENS[policy.dtype] - 1
    found = compare(engine, policy, prompt_ids[: max(room, 1)], adapter, lock)
    tolerance = TOLERANCES[torch.bfloat16 if engine.is_rounded else policy.dtype]
    if not found.mean <= tolerance:
        raise EngineError(
            f"engine {engine.name!r} and the trainer do not have the same model: over "
            f"{found.tokens} tokens of {adapter!r} their log-probs differ by {found.mean:.3g} in "
            f"the mean and {found.largest:.3g} at most; up to {tolerance} is rounding in "
            f"{str(policy.dtype).removeprefix('torch.')}{_tokenizers(engine, tokenizer)}",
            "Check that the server has this base model, this dtype (--dtype), no quantization and "
            "--logprobs-mode raw_logprobs.",
        )
    return found


def _tokenizers(engine: LocalEngine, tokenizer: Any) -> str:
    """Return whether the engine's own tokenizer, if it has one, returns the same tokens."""
    tokenize = getattr(engine, "tokenize", None)
    if tokenize is None:
        return ""
    engine_ids, ids = tokenize(TEXT), tokenizer.encode(TEXT, add_special_tokens=False)
    if engine_ids == ids:
        return ", and the vocabularies agree"
    place = next((i for i, (a, b) in enumerate(zip(engine_ids, ids, strict=False)) if a != b), 0)
    engine_id, own_id = engine_ids[place : place + 1], ids[place : place + 1]
    return (
        f", and the vocabularies differ: token {place} of a text is {engine_id} in the engine and "
        f"{own_id} in the trainer"
    )


async def _sampled(
    engine: LocalEngine, prompt_ids: Sequence[int], adapter: str, count: int
) -> list[Token]:
    sampling = Sampling(max_tokens=count, seed=0, stream=False)
    async with aclosing(engine.generate(prompt_ids, sampling, adapter)) as tokens:
        return [token async for token in tokens]
