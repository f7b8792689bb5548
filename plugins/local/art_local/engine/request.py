"""One sequence in the engine: its prompt, its sampled tokens, and the caller's event loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from art_core.base.errors import EngineError
from art_core.endpoint.engine import FinishReason, Sampling, Token
from art_local.constraints.vocabulary import Matcher
from art_local.engine.weights import Adapter

Delivery = Token | EngineError


class Request:
    """A request to the engine. The worker thread calls `take`; the caller's event loop reads
    `events`.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: Adapter,
        ends: frozenset[int],
        context: int,
        matcher: Matcher | None = None,
    ) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.pictures: Sequence[object] = ()  # kept: the prompt may have the ids of them
        self.sampling = sampling
        self.adapter = adapter
        self.matcher = matcher
        self.sampled: list[int] = []
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Delivery] = asyncio.Queue()
        self._max_tokens = min(sampling.max_tokens, context - len(self.prompt_ids))
        self._stops = ends.union(sampling.stop_token_ids)
        self._random = random.Random(sampling.seed)
        self._generator: np.random.Generator | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt and the sampled tokens."""
        return self.prompt_ids + tuple(self.sampled)

    @property
    def total(self) -> int:
        """The length of the shortest sequence that this request can end with."""
        return len(self.prompt_ids) + 1

    @property
    def room(self) -> int:
        """The number of tokens that may still be sampled."""
        return self._max_tokens - len(self.sampled)

    def uniform(self) -> float:
        """Return the next random number in [0, 1), for a request without a seed."""
        return self._random.random()

    def race(self, size: int, device: torch.device) -> torch.Tensor | None:
        """Return the next exponential numbers [size] of the seed's stream, if there are any."""
        if self.sampling.seed is None or not self.sampling.temperature:
            return None
        if self._generator is None:
            # Python's generator treats -7 as 7; texts differ
            seed = random.Random(str(self.sampling.seed)).getrandbits(64)
            self._generator = np.random.Generator(np.random.SFC64(seed))
        return torch.from_numpy(self._generator.standard_exponential(size, "f4")).to(device)

    def take(self, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]) -> Token:
        """Append a sampled token and return it, with a finish reason if it is the last."""
        self.sampled.append(token_id)
        finish: FinishReason | None = None
        if token_id in self._stops:
            finish = "stop"
        elif self.room <= 0:
            finish = "length"
        return Token(token_id, logprob, top, finish)


def deliver(events: Iterable[tuple[Request, Delivery]]) -> None:
    """Deliver tokens or errors to their callers, with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Delivery]]] = {}
    for request, event in events:
        by_loop.setdefault(request.loop, []).append((request, event))
    for loop, items in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, items)
        except RuntimeError:
            for request, _ in items:
                request.cancelled = True


def _put(items: list[tuple[Request, Delivery]]) -> None:
    for request, event in items:
        request.events.put_nowait(event)


def end_tokens(model: Any) -> frozenset[int]:
    """Return the token ids that end a sequence, from the model's generation config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
