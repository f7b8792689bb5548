"""The embedded engine: samples from a transformers model in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from art_core.base.errors import ConfigError, EngineError, unknown
from art_core.endpoint.engine import Sampling, Token
from art_local.constraints.vocabulary import Matcher, Vocabulary
from art_local.engine.batch import Limits
from art_local.engine.choose import make_forward
from art_local.engine.device_lock import DeviceLock
from art_local.engine.layer_types import context_length
from art_local.engine.protocol import BASE, StepWeights
from art_local.engine.request import Request, end_tokens
from art_local.engine.weights import Adapter, Weights
from art_local.engine.worker import Worker
from art_local.images.reader import ImageReader
from art_local.models.device_memory import device_memory
from art_local.threads import release_helpers

log = logging.getLogger("art_local")

CLOSE_TIMEOUT_S = 60.0


class TransformersEngine:
    """Samples from a transformers causal language model and merged adapters of it, many requests at
    a time.

    `state` is how sequences are computed: by "fused" layers, in "slots", with the model's "own
    cache", or as "whole texts".

    - `model`: a causal language model without peft. Its parameters are shared, not copied.
    - `lock`: held for each step; give the trainer's lock, so that both alternate.
    - `max_batch_size`: sequences decoded together.
    - `request_timeout_s`: how long a caller waits for its next token before it gets EngineError.
    - `prefill_tokens`: padded prompt tokens of one forward pass; this limits how long decoding rows
      wait for new ones.
    - `cache_bytes`: memory for keys and values; by default a share of the device's free memory.
      When it is full, new requests wait and the youngest running ones are computed again later.
    - `deterministic`: a request's log-probs, and with a seed its tokens, are the same bits whatever
      other requests run. Rows are then computed in passes of equal shape, which is slower.
    - `int8`: sample with weights rounded to 8 bits, on a CPU.
    - `vocabulary`: of the model's tokenizer, for requests with a grammar.
    """

    name = "transformers"

    def __init__(
        self,
        model: nn.Module,
        *,
        lock: DeviceLock | None = None,
        max_batch_size: int = 64,
        request_timeout_s: float = 600.0,
        prefill_tokens: int = 2048,
        cache_bytes: int | None = None,
        deterministic: bool = False,
        int8: bool = False,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        if max_batch_size < 1 or prefill_tokens < 1:
            raise ConfigError("max_batch_size and prefill_tokens must be at least 1")
        self._weights, self._grammars = Weights(model), vocabulary
        free = device_memory(next(model.parameters()).device).free
        forward = make_forward(
            self._weights.module, exact=deterministic, free_bytes=free, int8=int8
        )
        self._timeout_s = request_timeout_s
        config = self._weights.module.config.get_text_config()
        self.context_length: int = context_length(config)
        self._vocabulary: int = config.vocab_size
        self._ends = end_tokens(model)
        size = free // 4 if cache_bytes is None else cache_bytes
        limits = Limits(
            rows=max_batch_size,
            prefill_tokens=prefill_tokens,
            cache_tokens=max(size // forward.cache_bytes_per_token, 1),
            exact=deterministic,
        )
        self._rotary, self._warned = forward.rotary, False
        self._forward = forward
        self.state: str = forward.name
        self.is_rounded: bool = forward.is_rounded
        self.images_refused: str | None = None
        if not forward.takes_images:
            self.images_refused = f"the embedded engine computes its model with {forward.name!r}"
        self._worker = Worker(self._weights, forward, lock or DeviceLock(), limits)
        self._prompt_tokens = self._worker.prompt_tokens
        release_helpers()

    @property
    def adapters(self) -> list[str]:
        """The names that requests can use; "base" is the base model."""
        return self._weights.names

    def load(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Serve weights under a name: the base with these parameters, by the base model's parameter
        names.

        For LoRA give W + scale * B @ A of each adapted layer, for full fine-tuning copies of all
        parameters. Tensors are not copied. Loading a name again serves the new weights to new
        requests; running requests finish with the old ones. Raises ConfigError for a parameter that
        the model does not have.
        """
        self._weights.load(name, tensors)

    def unload(self, name: str) -> None:
        """Stop serving a name; running requests finish. "base" can't be unloaded."""
        if name != BASE:
            self._weights.unload(name)

    def read_images(self, reader: ImageReader, /) -> None:
        """Take images in prompts; see `LocalEngine`."""
        self._forward.images = reader

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: str = BASE,
        images: Sequence[str] = (),
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; see `art_core.endpoint.engine.ImageEngine`. The model's own end
        tokens always end it.
        """
        request = self._request(prompt_ids, sampling, adapter)
        if images:
            await asyncio.to_thread(self._show, request, images)
        self._worker.submit(request)
        try:
            while True:
                token = await self._next(request)
                yield token
                if token.finish is not None:
                    return
        finally:
            request.cancelled = True

    async def score(self, ids: Sequence[int], adapter: str = BASE) -> list[float]:
        """Return the log-probs of a text; see `art_core.endpoint.engine.ScoringEngine`."""
        self._check_ids(ids)
        found = asyncio.wrap_future(self._worker.score(self._adapter(adapter), ids))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await found
        except TimeoutError:
            raise EngineError(
                f"a text of {len(ids)} tokens was not scored within {self._timeout_s} s; "
                f"{self._worker.waiting_for}"
            ) from None

    def publish(self, adapter: str, weights: StepWeights) -> None:
        """Serve a step's merged weights; see `LocalEngine`."""
        self.load(adapter, weights.merged())

    def asleep(self) -> AbstractContextManager[None]:
        """Do nothing: the trainer takes the device piece by piece (`DeviceLock`)."""
        return nullcontext()

    def check(self) -> None:
        """Do nothing: each request gets the error with which the engine's thread ended."""

    def step_metrics(self) -> dict[str, float]:
        """Return the share of prompt tokens since the last call that were not computed again."""
        before, self._prompt_tokens = self._prompt_tokens, self._worker.prompt_tokens
        asked, found = (now - then for now, then in zip(self._prompt_tokens, before, strict=True))
        return {"throughput/engine_prefix_hit_rate": found / asked} if asked else {}

    async def close(self) -> None:
        """End all requests with an EngineError and the worker thread; a second call does
        nothing.
        """
        await asyncio.to_thread(
            self._worker.close, EngineError("the engine is closed"), CLOSE_TIMEOUT_S
        )

    def _request(self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str) -> Request:
        if not prompt_ids or len(prompt_ids) >= self.context_length:
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens; "
                f"between 1 and {self.context_length - 1} fit into the context"
            )
        if sampling.max_tokens < 1:
            raise EngineError(f"max_tokens must be at least 1, got {sampling.max_tokens}")
        try:
            self._check_ids([*prompt_ids, *(token for token, _ in sampling.logit_bias)])
        except ConfigError as error:
            raise EngineError(*error.args) from None
        longest = self._max_length(prompt_ids, sampling)
        matcher = None if sampling.grammar is None else self._matcher(sampling.grammar)
        weights = self._adapter(adapter)
        return Request(prompt_ids, sampling, weights, self._ends, longest, matcher)

    def _matcher(self, grammar: str) -> Matcher:
        if self._grammars is None:
            raise EngineError("the engine has no vocabulary, so it samples without grammars")
        try:
            return self._grammars.matcher(grammar)
        except ConfigError as error:
            raise EngineError(f"the grammar does not compile: {error}") from error

    def _show(self, request: Request, images: Sequence[str]) -> None:
        """Let a request's prompt have these images."""
        reader = self._forward.images
        if reader is None:
            raise EngineError("this engine reads no images")
        try:
            request.prompt_ids, request.pictures = reader.own_ids(request.prompt_ids, images)
        except ConfigError as error:
            raise EngineError(*error.args) from None

    def _check_ids(self, ids: Sequence[int]) -> None:
        invalid = [token for token in ids if not 0 <= token < self._vocabulary]
        if invalid:
            raise ConfigError(f"token {invalid[0]} is outside the vocabulary of {self._vocabulary}")

    def _adapter(self, name: str) -> Adapter:
        try:
            return self._weights.get(name)
        except KeyError:
            raise EngineError(unknown("adapter", name, self.adapters, known_as="loaded")) from None

    def _max_length(self, prompt_ids: Sequence[int], sampling: Sampling) -> int:
        """Return the maximum length of a sequence: the context, or less if the rotary positions
        change within it.
        """
        limit = self._rotary.longest(len(prompt_ids) + 1)
        if limit is None or limit >= self.context_length:
            return self.context_length
        if len(prompt_ids) + sampling.max_tokens > limit and not self._warned:
            self._warned = True
            log.warning(
                "completions of prompts of fewer than %d tokens end at %d tokens in total: the "
                "model has other rotary positions for longer sequences, and they can't change "
                "within one",
                limit,
                limit,
            )
        return limit

    async def _next(self, request: Request) -> Token:
        if request.events.empty():
            try:
                async with asyncio.timeout(self._timeout_s):
                    event = await request.events.get()
            except TimeoutError:
                raise EngineError(
                    f"no token within {self._timeout_s} s after {len(request.sampled)} tokens; "
                    f"{self._worker.waiting_for}"
                ) from None
        else:
            event = request.events.get_nowait()
        if isinstance(event, EngineError):
            raise EngineError(*event.args)
        return event
