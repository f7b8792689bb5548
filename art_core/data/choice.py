"""Choices: the model's answers inside a conversation, with the engine's tokens.

A *choice* is what an OpenAI-compatible endpoint returns in `completion.choices[0]`: the client's
object, or the dict that it was stored as. Everything else in a conversation is a message dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError

Message = dict[str, Any]
MessageOrChoice = Any
"""A chat message (`{"role": ..., "content": ...}`), an openai `Choice`, or a choice's dict form."""


@attrs.frozen(kw_only=True)
class ChoiceTokens:
    """The engine's own tokens of one choice; no text was tokenised again.

    `prompt_ids` [P] is the whole prompt that the engine saw, `completion_ids` [C] what it sampled
    (its end token included), `logprobs` [C] the natural log-probabilities of the samples, and
    `policy_version` the training step of the weights that made them, if the endpoint reported it.
    `biased` means that the endpoint sampled at a temperature or top_p other than 1, so `logprobs`
    are not those of the sampling.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_version: int | None = None
    truncated: bool = False
    biased: bool = False


def is_choice(item: MessageOrChoice) -> bool:
    """Return whether an item of a conversation is a choice; others are messages."""
    if isinstance(item, Mapping):
        return "message" in item and "finish_reason" in item
    return hasattr(item, "message") and hasattr(item, "finish_reason")


def is_cut_off(item: MessageOrChoice) -> bool:
    """Return whether an item of a conversation is an answer that `max_tokens` cut off."""
    return is_choice(item) and bool(_get(item, "finish_reason") == "length")


def choice_dict(item: MessageOrChoice) -> dict[str, Any]:
    """Return a choice as plain JSON values, the form in which it is stored."""
    if isinstance(item, Mapping):
        return dict(item)
    return {"finish_reason": None} | _dumped(item)


def message_dict(item: Any) -> Message:
    """Return a message as a dict, also an openai `ChatCompletionMessage`; ConfigError for anything
    else.
    """
    if isinstance(item, Mapping):
        return dict(item)
    if hasattr(item, "model_dump"):
        return _dumped(item)
    raise ConfigError(
        f"a conversation holds messages and choices, not {type(item).__name__}",
        'Append {"role": ..., "content": ...} or completion.choices[0].',
    )


def _dumped(item: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = item.model_dump(mode="json", exclude_none=True, warnings=False)
    return dumped


def message_of(item: MessageOrChoice) -> Message:
    """Return the chat message of a choice, or the message itself, to send it back to a model."""
    if not is_choice(item):
        return message_dict(item)
    message = message_dict(_get(item, "message"))
    present = {k: v for k, v in message.items() if v is not None and v != []}
    return {"role": "assistant", "content": None, **present}


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _completion_ids(item: MessageOrChoice, content: Sequence[Any]) -> list[int] | None:
    """Return a choice's token ids. A choice that openai assembled from a stream has them in its
    log-probs.
    """
    ids: list[int] | None = _get(item, "token_ids")
    beside = [_get(entry, "token_id") for entry in content]
    return beside if beside and None not in beside else ids


def tokens_of(item: MessageOrChoice) -> ChoiceTokens | None:
    """Return the engine's tokens of a choice; None if the endpoint did not send all of them."""
    prompt_ids = _get(item, "prompt_token_ids")
    content = _get(_get(item, "logprobs") or {}, "content")
    if not prompt_ids or content is None:
        return None
    completion_ids = _completion_ids(item, content)
    logprobs = [_get(entry, "logprob") for entry in content]
    if completion_ids is None or len(logprobs) != len(completion_ids) or None in logprobs:
        return None
    return ChoiceTokens(
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(completion_ids),
        logprobs=tuple(map(float, logprobs)),
        policy_version=_get(item, "policy_version"),
        truncated=_get(item, "finish_reason") == "length",
        biased=bool(_get(item, "sampling")),
    )
