"""The sequences that are sampled from one adapter: those waiting for their prefill, and those
decoding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import attrs
import torch

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Token
from art_local.engine.forward import Forward
from art_local.engine.request import Delivery, Request
from art_local.engine.sampling import Drawn, draw
from art_local.engine.weights import Adapter

LOOK_AHEAD = 64
SPARE = 16
"""Free places that a new row needs besides its tokens, so that it is not preempted at once."""


@attrs.frozen(kw_only=True)
class Limits:
    """Limits of a batch: rows, padded prompt tokens in one forward pass, and tokens in the caches
    of all batches together. With `exact` a row is not computed again: it is admitted when its
    longest end has room.
    """

    rows: int
    prefill_tokens: int
    cache_tokens: int
    exact: bool = False


class Batch:
    """Continuous batching over one adapter: a step is a prefill while prompts wait and rows are
    free, else one token.
    """

    def __init__(self, adapter: Adapter, forward: Forward, limits: Limits) -> None:
        self.adapter = adapter
        self.waiting: deque[Request] = deque()
        self.rows: list[Request] = []
        self._forward = forward
        self._limits = limits
        self._cache = forward.new_cache()
        self._constrained = 0

    @property
    def requests(self) -> list[Request]:
        """All requests, running first."""
        return [*self.rows, *self.waiting]

    @property
    def cache_tokens(self) -> int:
        """Places in the cache that this batch uses: rows times the longest row."""
        return len(self.rows) * self._width

    @property
    def _width(self) -> int:
        if self._limits.exact:
            return max(map(_longest_end, self.rows), default=0)
        return self._cache.width

    def drop_cancelled(self) -> None:
        """Remove requests that their callers have cancelled."""
        if any(request.cancelled for request in self.requests):
            self.waiting = deque(request for request in self.waiting if not request.cancelled)
            self._remove({row for row, request in enumerate(self.rows) if request.cancelled})
        if not self.rows:
            self._cache = self._forward.new_cache()

    def step(self, others_tokens: int) -> list[tuple[Request, Delivery]]:
        """Sample one token for new rows or for all running ones; finished rows are removed.

        `others_tokens` are the places that other batches use.
        """
        room = self._limits.cache_tokens - others_tokens
        prompts, source, admitted = self._admit(room)
        if admitted:
            first = len(self.rows)
            longest = max(
                len(request.token_ids) + min(request.room, LOOK_AHEAD) for request in admitted
            )
            self._cache.reserve(
                first + len(admitted), min(longest, max(room // (first + len(admitted)), 1))
            )
            self._cache.reserve(first + len(admitted), max(map(len, prompts)))
            self.rows += admitted
            self._constrained += sum(request.matcher is not None for request in admitted)
            logits = self._forward.prefill(prompts, source, self._cache)
            return self._sample(first, logits)
        self._preempt(room)
        self._cache.reserve(len(self.rows), self._cache.width + 1)
        logits = self._forward.decode([request.sampled[-1] for request in self.rows], self._cache)
        return self._sample(0, logits)

    def _admit(self, room: int) -> tuple[list[tuple[int, ...]], list[int], list[Request]]:
        """Remove the requests to prefill next from the queue; return distinct prompts [U], the
        prompt of each row [R], and the requests.
        """
        index: dict[tuple[int, ...], int] = {}
        source: list[int] = []
        admitted: list[Request] = []
        width = self._width + SPARE
        for request in list(self.waiting):
            if len(self.rows) + len(admitted) >= self._limits.rows:
                break
            ids = request.token_ids
            rows = len(self.rows) + len(admitted) + 1
            own = _longest_end(request) if self._limits.exact else len(ids)
            width = max(width, own + SPARE)
            if rows > 1 and rows * width > room:
                break
            if ids not in index:
                padded = (len(index) + 1) * max(map(len, [*index, ids]))
                if index and padded > self._limits.prefill_tokens:
                    break
            source.append(index.setdefault(ids, len(index)))
            admitted.append(request)
        for _ in admitted:
            self.waiting.popleft()
        return list(index), source, admitted

    def _preempt(self, room: int) -> None:
        """Move the youngest rows back to the queue until the next token fits; their tokens are
        prefilled again.
        """
        while (
            not self._limits.exact
            and len(self.rows) > 1
            and len(self.rows) * (self._cache.width + 1) > room
        ):
            self.waiting.appendleft(self.rows[-1])
            self._remove({len(self.rows) - 1})

    def _sample(self, first: int, logits_NV: torch.Tensor) -> list[tuple[Request, Delivery]]:
        rows = self.rows[first:]
        if self._constrained:
            return self._sample_constrained(first, rows, logits_NV)
        events = self._drawn(rows, logits_NV, {})
        self._remove({first + row for row, (_, token) in enumerate(events) if token.finish})
        return [*events]

    def _sample_constrained(
        self, first: int, rows: list[Request], logits_NV: torch.Tensor
    ) -> list[tuple[Request, Delivery]]:
        """Sample rows of which some have a grammar; one whose grammar fails ends with its error."""
        masks: dict[int, bytes] = {}
        failed: dict[int, EngineError] = {}
        for row, request in enumerate(rows):
            try:
                if request.matcher is not None:
                    masks[row] = request.matcher.mask()
            except EngineError as error:
                failed[row] = error
        events: list[tuple[Request, Delivery]] = []
        for row, (request, token) in enumerate(self._drawn(rows, logits_NV, masks)):
            if request.matcher is not None:
                request.matcher.take(token.id)
            events.append((request, failed.get(row, token)))
        ended = (isinstance(event, EngineError) or event.finish for _, event in events)
        self._remove({first + row for row, end in enumerate(ended) if end})
        return events

    def _drawn(
        self, rows: list[Request], logits_NV: torch.Tensor, masks: dict[int, bytes]
    ) -> list[tuple[Request, Token]]:
        # reductions over several rows may add in another order than over one
        if self._limits.exact:
            alone = (({0: masks[row]} if row in masks else {}) for row in range(len(rows)))
            drawn = [
                _draw([request], row_1V, mask)[0]
                for request, row_1V, mask in zip(rows, logits_NV.split(1), alone, strict=True)
            ]
        else:
            drawn = _draw(rows, logits_NV, masks)
        return [(request, request.take(*token)) for request, token in zip(rows, drawn, strict=True)]

    def _remove(self, rows: set[int]) -> None:
        for row in sorted(rows, reverse=True):
            self._cache.remove(row)
            self._constrained -= self.rows[row].matcher is not None
            self.rows[row] = self.rows[-1]
            self.rows.pop()


def _longest_end(request: Request) -> int:
    return len(request.token_ids) + request.room


def _draw(rows: Sequence[Request], logits_NV: torch.Tensor, masks: dict[int, bytes]) -> list[Drawn]:
    races = [r.race(logits_NV.shape[1], logits_NV.device) for r in rows]
    return draw(logits_NV, [r.sampling for r in rows], [r.uniform() for r in rows], races, masks)
