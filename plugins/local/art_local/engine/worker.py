"""The engine's thread: takes requests, gives each adapter a time slice, delivers tokens, and
reports its own failure to all requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from art_core.base.errors import EngineError
from art_local.engine.batch import Batch, Limits
from art_local.engine.device_lock import DeviceLock
from art_local.engine.forward import Forward
from art_local.engine.request import Request, deliver
from art_local.engine.weights import Adapter, Weights
from art_local.models.load import RotaryGroup
from art_local.threads import release_helpers

Text = tuple[Adapter, tuple[int, ...], Future[list[float]]]
"""A text to score: the weights, its tokens, and its log-probs to come."""

GATHER_S = 0.004
MAX_GATHER_S = 0.04
SLICE_S = 0.5
KEPT_SHARE = 0.25
"""The share of the cache that ended sequences may have, for prompts that begin as they do."""


class Worker:
    """Owns the model's module and the batches. `submit` and `close` may be called from any
    thread.
    """

    def __init__(
        self, weights: Weights, forward: Forward, lock: DeviceLock, limits: Limits
    ) -> None:
        self._weights = weights
        self._lock = lock
        self._limits = limits
        self._forward = forward
        self._arrived: list[Request] = []
        self._texts: list[Text] = []
        self._changed = threading.Condition()
        self._ended: EngineError | None = None
        self._batches: dict[tuple[Adapter, RotaryGroup], Batch] = {}
        self._slice_ends = 0.0
        self._thread = threading.Thread(target=self._run, name="art-engine", daemon=True)
        self._thread.start()

    @property
    def waiting_for(self) -> str:
        """A description of what a request may be waiting for."""
        running = sum(len(batch.rows) for batch in list(self._batches.values()))
        holder = self._lock.holder
        return (
            f"{running} sequences run, the device is held by {holder!r}"
            if holder
            else f"{running} sequences run"
        )

    @property
    def prompt_tokens(self) -> tuple[int, int]:
        """How many prompt tokens there were so far, and how many of them were not computed."""
        return self._forward.prompt_tokens()

    def submit(self, request: Request) -> None:
        """Queue a request; raises EngineError when the engine has ended."""
        with self._changed:
            if self._ended is not None:
                raise EngineError(*self._ended.args)
            self._arrived.append(request)
            self._changed.notify()

    def score(self, adapter: Adapter, ids: Sequence[int]) -> Future[list[float]]:
        """Queue a text; its log-probs come between the steps of sampled sequences."""
        found: Future[list[float]] = Future()
        with self._changed:
            if self._ended is not None:
                raise EngineError(*self._ended.args)
            self._texts.append((adapter, tuple(ids), found))
            self._changed.notify()
        return found

    def close(self, reason: EngineError, timeout_s: float) -> None:
        """End all requests with the reason, and end the thread; EngineError if it does not end in
        time.
        """
        with self._changed:
            self._ended = self._ended or reason
            self._changed.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise EngineError(
                f"the engine's thread did not end within {timeout_s} s; {self.waiting_for}"
            )

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._take_arrivals():
                    self._score_next()
                    self._step()
        except BaseException as error:
            with self._changed:
                self._ended = EngineError(
                    f"the engine's thread died of {type(error).__name__}: {error}"
                )
        finally:
            assert self._ended is not None
            self._fail(
                [r for batch in self._batches.values() for r in batch.requests] + self._arrived,
                self._ended,
            )
            for _, _, found in self._texts:
                if found.set_running_or_notify_cancel():
                    found.set_exception(EngineError(*self._ended.args))
            self._batches.clear()
            self._weights.release()

    def _take_arrivals(self) -> bool:
        """Move new requests to their batches, after waiting for one while idle. Return False if the
        engine has ended.
        """
        with self._changed:
            if not self._batches and not self._waiting and self._ended is None:
                self._weights.release()
                self._forward.release()
                release_helpers()
                self._changed.wait_for(lambda: self._waiting or self._ended is not None)
                idle = bool(self._arrived)
            else:
                idle = False
        if idle:
            self._gather()
        with self._changed:
            if self._ended is not None:
                return False
            arrived, self._arrived = self._arrived, []
        for request in arrived:
            key = request.adapter, self._forward.rotary.group(request.total)
            batch = self._batches.get(key)
            if batch is None:
                batch = self._batches[key] = Batch(request.adapter, self._forward, self._limits)
            batch.waiting.append(request)
        return True

    @property
    def _waiting(self) -> bool:
        return bool(self._arrived or self._texts)

    def _score_next(self) -> None:
        """Score the first text that waits, and others that fit into the same forward pass."""
        with self._changed:
            chosen = self._texts_of_one_pass()
            self._texts = [text for text in self._texts if text not in chosen]
        chosen = [text for text in chosen if text[2].set_running_or_notify_cancel()]
        if not chosen:
            return
        try:
            with self._lock.hold("scoring texts"):
                self._weights.activate(chosen[0][0])
                self._forward.use(chosen[0][0])
                scores = self._forward.score([ids for _, ids, _ in chosen])
        except Exception as error:
            known = isinstance(error, EngineError)
            reason = error if known else EngineError(f"{type(error).__name__}: {error}")
            for _, _, found in chosen:
                found.set_exception(reason)
            return
        for (_, _, found), logprobs in zip(chosen, scores, strict=True):
            found.set_result(logprobs)

    def _texts_of_one_pass(self) -> list[Text]:
        chosen: list[Text] = []
        for adapter, ids, found in self._texts:
            first = chosen[0] if chosen else (adapter, ids, found)
            groups = [self._forward.rotary.group(len(each)) for each in (ids, first[1])]
            longest = max(len(ids), *(len(each) for _, each, _ in chosen), 0)
            fits = not chosen or (len(chosen) + 1) * longest <= self._limits.prefill_tokens
            if adapter is first[0] and groups[0] == groups[1] and fits:
                chosen.append((adapter, ids, found))
        return chosen

    def _gather(self) -> None:
        """Wait for the rest of a burst of requests: a shared prompt is then prefilled once."""
        until = time.monotonic() + MAX_GATHER_S
        count = 0
        while count < len(self._arrived) and time.monotonic() < until:
            count = len(self._arrived)
            time.sleep(GATHER_S)

    def _step(self) -> None:
        key = self._next_key()
        if key is None:
            return
        batch = self._batches[key]
        others = sum(other.cache_tokens for other in self._batches.values() if other is not batch)
        try:
            with self._lock.hold("generating"):
                self._weights.activate(batch.adapter)
                self._forward.use(batch.adapter)
                events = batch.step(others)
                self._trim(others + batch.cache_tokens)
        except Exception as error:
            reason = (
                error
                if isinstance(error, EngineError)
                else EngineError(f"{type(error).__name__}: {error}")
            )
            del self._batches[key]
            self._fail(batch.requests, reason)
            return
        deliver(events)

    def _trim(self, used: int) -> None:
        """Let ended sequences have their share of the cache, or what running ones leave of it."""
        total = self._limits.cache_tokens
        self._forward.trim(min(int(total * KEPT_SHARE), total - used))

    def _next_key(self) -> tuple[Adapter, RotaryGroup] | None:
        """Return the key of the batch that runs next; batches without requests are removed."""
        for key, batch in list(self._batches.items()):
            batch.drop_cancelled()
            if not batch.requests:
                del self._batches[key]
        if not self._batches:
            return None
        key = next(iter(self._batches))
        if time.monotonic() >= self._slice_ends:
            batch = self._batches.pop(key)
            self._batches[key] = batch
            key = next(iter(self._batches))
            self._slice_ends = time.monotonic() + SLICE_S
        return key

    @staticmethod
    def _fail(requests: list[Request], reason: EngineError) -> None:
        deliver((request, reason) for request in requests)
