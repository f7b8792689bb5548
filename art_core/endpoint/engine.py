"""The interface of engines: token ids in, sampled tokens with their log-probs out.

The endpoint handles chat templates, tool calls, model names and errors; an engine handles weights
and batching. Implementations are the embedded transformers engine, a vLLM server, and hosted
sampling clients.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import attrs

from art_core.endpoint.constraint import Constraint

FinishReason = Literal["stop", "length"]
CONTEXT_HEADER = "X-ART-Context"
request_context: ContextVar[str] = ContextVar("art_request_context", default="")
"""The context of the current request, "train" or "eval", from its header; "" without a header."""


@attrs.frozen(kw_only=True)
class Sampling:
    """The parameters of one sequence. Each token has `top_logprobs` alternatives (0 for none).

    `stop_token_ids` end the sequence and stay in its tokens. The endpoint itself looks for stop
    strings. `seed` makes the draw repeatable for equal prompts and weights; -1 and 1 are different
    seeds. Other sequences of the batch may change the last digits of log-probs, and so a draw
    between almost equally probable tokens. With `stream` an engine yields tokens as they come,
    without it it may yield all of them at the end.

    The draw is from softmax((logits + `logit_bias`) / temperature), without tokens that are less
    than `min_p` times as probable as the most probable one, then without those beyond `top_p`. A
    `grammar`, as the model's `Grammars` returned it, excludes tokens before all of that, and
    log-probs are those of softmax(logits) over the other tokens.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    seed: int | None = None
    top_logprobs: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stream: bool = True


@attrs.frozen
class Token:
    """One sampled token: its id, its natural log-probability under the weights at temperature 1
    among the tokens that the grammar allows, and alternatives.

    An engine that caches prompts sets `cached_tokens` in at least one token of a sequence: the
    number of the prompt's tokens that were in its cache.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int | None = None


class Engine(Protocol):
    """Samples from the weights of a named adapter. Requests that run at the same time are
    batched.
    """

    context_length: int

    def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; the last token carries `finish`. Closing the generator cancels the
        request.

        Raises EngineError with the reason if the engine is closed, dead or too late.
        """

    async def close(self) -> None:
        """End all requests with an EngineError and free all memory."""


class ScoringEngine(Engine, Protocol):
    """An engine that also gives log-probs of texts; teachers of distillation need it."""

    async def score(self, ids: Sequence[int], adapter: str) -> Sequence[float]:
        """Return the natural log-prob of each token but the first, given those before it, at
        temperature 1.

        Raises ConfigError for a token outside of the vocabulary, EngineError as `generate` does.
        """


class ImageEngine(Engine, Protocol):
    """An engine whose prompts may have images."""

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        adapter: str,
        images: Sequence[str] = (),
    ) -> AsyncGenerator[Token, None]:
        """Sample one sequence; `images` are the data URLs of the prompt's images, in its order."""


class ChatTokenizer(Protocol):
    """The methods of a tokenizer that the endpoint uses; tokenizers of transformers have them."""

    eos_token_id: int | None
    all_special_ids: list[int]

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages (and tools) to token ids."""

    def encode(self, text: str, **options: Any) -> list[int]:
        """Turn text into token ids."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Turn token ids into text."""


class Grammars(Protocol):
    """Compiles constraints for an engine and its tokenizer."""

    def grammar(self, constraint: Constraint, prompt_ids: Sequence[int]) -> str:
        """Return the grammar of an answer to a prompt, which may begin with thoughts if the chat
        template has them; without prompt ids it begins at once.

        It is stored with the answer: from it and the answer's tokens, training computes which
        tokens were allowed. Raises ConfigError, with the reason, for a constraint that is invalid
        or not supported.
        """


class ModelNames(Protocol):
    """The model names of an endpoint, and the weights of each."""

    def names(self) -> Sequence[str]:
        """Return the names to list under /v1/models."""

    async def resolve(self, name: str) -> ServedModel:
        """Return the model of a name, with its weights loaded; KeyError for an unknown name."""


@attrs.frozen(kw_only=True)
class ServedModel:
    """The weights of a model name: their engine, their adapter, and the step that made them.

    `images_refused` is the reason why prompts have no images. If it is None, the engine is an
    `ImageEngine`, and the tokenizer renders parts {"type": "image", "image": URL} of messages as
    the tokens of that image; ConfigError for one that it cannot read.
    `grammars` is None if the engine samples without grammars. `biases` means that it has
    `logit_bias` and `min_p`.
    """

    engine: Engine
    tokenizer: ChatTokenizer
    adapter: str
    name: str
    policy_version: int | None = None
    images_refused: str | None = "its model reads text only"
    grammars: Grammars | None = None
    biases: bool = False
