"""What the endpoint asks of an engine: token ids in, sampled tokens with their log-probs out.

The endpoint owns chat templates, tool calls, model names and errors; an engine owns weights and
batching. The embedded transformers engine is one implementation, a vLLM server or a hosted sampling
client are others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import attrs

FinishReason = Literal["stop", "length"]
CONTEXT_HEADER = "X-ART-Context"
request_context: ContextVar[str] = ContextVar("art_request_context", default="")
"""What the request at hand belongs to, "train" or "eval", as its header says; "" without one."""


@attrs.frozen(kw_only=True)
class Sampling:
    """How one sequence is sampled. `top_logprobs` alternatives come with each token (0 for none).

    `stop_token_ids` end the sequence and stay in its tokens; stop strings are the endpoint's
    business. `seed` makes the draw repeatable for equal prompts and weights; a negative one is
    another seed than its positive. What else is in the batch may change log-probs in their last
    digits, and so a draw between tokens that are as good as equal. `stream` asks for tokens as they
    come; without it an engine may hand all of them out at the end.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stream: bool = True


@attrs.frozen
class Token:
    """One sampled token: its id, its natural log-probability under the weights at temperature 1,
    and alternatives.

    An engine that keeps prompts says with any one token of a sequence how many of the prompt's
    tokens it had computed before.
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

        Raises EngineError when the engine is closed, dead or past its timeout, with the reason.
        """

    async def close(self) -> None:
        """End all requests with an EngineError and free what is held."""


class ChatTokenizer(Protocol):
    """What the endpoint needs of a tokenizer; that of transformers fits."""

    eos_token_id: int | None
    all_special_ids: list[int]

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages (and tools) to token ids."""

    def encode(self, text: str, **options: Any) -> list[int]:
        """Turn text into token ids."""

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Turn token ids into text."""


class ModelNames(Protocol):
    """Which model names an endpoint answers to, and which weights each means."""

    def names(self) -> Sequence[str]:
        """Return the names to list under /v1/models."""

    async def resolve(self, name: str) -> ServedModel:
        """Return what a name means now, its weights loaded; raises KeyError for an unknown name."""


@attrs.frozen(kw_only=True)
class ServedModel:
    """Weights behind a model name: the engine that has them, its adapter's name, and the step that
    made them.
    """

    engine: Engine
    tokenizer: ChatTokenizer
    adapter: str
    name: str
    policy_version: int | None = None
