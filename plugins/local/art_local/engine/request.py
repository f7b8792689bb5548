"""One sequence on its way: what was asked, what was sampled so far, and the caller's loop that
waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence

import torch

from art_core.base.errors import EngineError
from art_core.endpoint.engine import FinishReason, Sampling, Token
from art_local.engine.weights import Adapter

Event = Token | EngineError


class Request:
    """A request of the engine. The worker thread calls `take`; the caller's event loop reads
    `events`.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: Adapter,
        ends: frozenset[int],
        context: int,
    ) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.sampling = sampling
        self.adapter = adapter
        self.sampled: list[int] = []
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._most = min(sampling.max_tokens, context - len(self.prompt_ids))
        self._stops = ends.union(sampling.stop_token_ids)
        self._random = random.Random(sampling.seed)
        self._generator: torch.Generator | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt and what was sampled."""
        return self.prompt_ids + tuple(self.sampled)

    @property
    def total(self) -> int:
        """The length of the shortest sequence that this request can end with."""
        return len(self.prompt_ids) + 1

    @property
    def room(self) -> int:
        """How many tokens may still come."""
        return self._most - len(self.sampled)

    def uniform(self) -> float:
        """The next random number in [0, 1), for a request without a seed."""
        return self._random.random()

    def race(self, size: int, device: torch.device) -> torch.Tensor | None:
        """The next exponential numbers [size] of a seed's own stream; None where none are drawn."""
        if self.sampling.seed is None or not self.sampling.temperature:
            return None
        if self._generator is None:
            # torch takes 32 bits of a seed, and Python's own numbers take -7 for 7; texts differ.
            seed = random.Random(str(self.sampling.seed)).getrandbits(32)
            self._generator = torch.Generator(device).manual_seed(seed)
        return torch.empty(size, device=device).exponential_(generator=self._generator)

    def take(self, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]) -> Token:
        """Append a sampled token and say whether it was the last."""
        self.sampled.append(token_id)
        finish: FinishReason | None = None
        if token_id in self._stops:
            finish = "stop"
        elif self.room <= 0:
            finish = "length"
        return Token(token_id, logprob, top, finish)


def deliver(events: Iterable[tuple[Request, Event]]) -> None:
    """Hand events to their callers: one wake-up for each event loop, however many tokens there
    are.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, Event]]] = {}
    for request, event in events:
        by_loop.setdefault(request.loop, []).append((request, event))
    for loop, items in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, items)
        except RuntimeError:
            for request, _ in items:
                request.cancelled = True


def _put(items: list[tuple[Request, Event]]) -> None:
    for request, event in items:
        request.events.put_nowait(event)
