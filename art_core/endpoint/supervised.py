"""Given conversations as tokens: the turns that supervised fine-tuning trains, by the template.

A turn is what the engine would read and sample: the prompt that the endpoint renders for the
messages before an assistant message, and that message up to its end token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.data.images import with_images
from art_core.data.trajectory import ChoiceTokens, History, is_choice, message_of, tokens_of
from art_core.endpoint.engine import ChatTokenizer
from art_core.endpoint.errors import RequestError
from art_core.endpoint.messages import checked_messages, checked_tools, images_of
from art_core.endpoint.thoughts import Spellings, in_content

_GENERATION = re.compile(r"\{%-?\s*generation\b")
_STAND_IN = ("A", "B")


def trained_turns(
    history: History, tokenizer: ChatTokenizer, *, context_length: int | None = None
) -> list[ChoiceTokens]:
    """Return the turns of a conversation that are trained, in order.

    If all choices of the model carry engine tokens that the tokenizer spells alike, those are the
    turns. Otherwise the chat template renders the conversation, and each choice is a turn; without
    any choice, each assistant message is one, but those with a `weight` of 0. Log-probs are NaN.

    Raises ConfigError for messages that are invalid, that the template can't render, or that have
    more tokens than the context.
    """
    sampled = _sampled(history, tokenizer)
    if sampled is None:
        template = _Template.of(history, tokenizer)
        template.check_length(context_length)
        sampled = template.turns()
    longest = max((len(t.prompt_ids) + len(t.completion_ids) for t in sampled), default=0)
    _check_length(longest, context_length)
    return sampled


def _check_length(tokens: int, context_length: int | None) -> None:
    if context_length is not None and tokens > context_length:
        raise ConfigError(
            f"it has {tokens:,} tokens, and the context of the model holds {context_length:,}",
            "Shorten it or split it, or give the backend a longer context_length if the model has "
            "one.",
        )


def _sampled(history: History, tokenizer: ChatTokenizer) -> list[ChoiceTokens] | None:
    """Return the engine's own tokens of all choices; None if some are missing or are those of
    another tokenizer.
    """
    choices = [item for item in history.messages_and_choices if is_choice(item)]
    turns = [turn for turn in map(tokens_of, choices) if turn is not None]
    if not turns or len(turns) < len(choices):
        return None
    for turn, choice in zip(turns, choices, strict=True):
        if not _spells(tokenizer, turn.completion_ids, message_of(choice).get("content")):
            return None
    return with_images(turns, history)


def _spells(tokenizer: ChatTokenizer, ids: Sequence[int], content: Any) -> bool:
    try:
        text = tokenizer.decode(list(ids), skip_special_tokens=False)
    except (ValueError, TypeError, IndexError, OverflowError):
        return False  # ids that the tokenizer does not have
    return not isinstance(content, str) or content.strip() in text


@attrs.frozen(kw_only=True, eq=False)
class _Template:
    """A conversation and the chat template that renders it; `trained` marks messages."""

    tokenizer: ChatTokenizer
    messages: Sequence[dict[str, Any]]
    trained: Sequence[bool]
    options: dict[str, Any]

    @classmethod
    def of(cls, history: History, tokenizer: ChatTokenizer) -> _Template:
        items = history.messages_and_choices
        plain = [message_of(item) for item in items]
        chosen = [is_choice(item) for item in items]
        if not any(chosen):
            chosen = [m.get("role") == "assistant" and m.get("weight", 1) != 0 for m in plain]
        plain = [{k: v for k, v in message.items() if k != "weight"} for message in plain]
        try:
            messages = in_content(checked_messages(plain), tokenizer, Spellings())
            tools = checked_tools(history.tools, None)
        except RequestError as error:
            raise ConfigError(str(error)) from error
        options: dict[str, Any] = {"tools": list(tools)} if tools else {}
        return cls(tokenizer=tokenizer, messages=messages, trained=chosen, options=options)

    def turns(self) -> list[ChoiceTokens]:
        """Return the trained turns, by the template's generation mask if it has one."""
        marks = _GENERATION.search(str(getattr(self.tokenizer, "chat_template", "")))
        if marks and not images_of(self.messages):
            with suppress(NotImplementedError, ValueError):  # a tokenizer without offsets
                if (masked := self._masked()) is not None:
                    return masked
        return [self._turn(place) for place, trained in enumerate(self.trained) if trained]

    def check_length(self, context_length: int | None) -> None:
        """Raise ConfigError for a conversation that is longer than the context."""
        if context_length is not None:
            _check_length(len(self._ids(self._text(len(self.messages)))), context_length)

    def _masked(self) -> list[ChoiceTokens] | None:
        """Return the turns that the template marks; None if they are not those to train."""
        rendered = self.tokenizer.apply_chat_template(
            list(self.messages), tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True, **self.options,
        )  # fmt: skip
        ids, mask = list(rendered["input_ids"]), list(rendered["assistant_masks"])
        runs = list(_runs(mask))
        answers = [t for t, m in zip(self.trained, self.messages, strict=True)
                   if m["role"] == "assistant"]  # fmt: skip
        if len(runs) != len(answers):
            return None
        return [_turn_of(ids[:a], ids[a:b]) for (a, b), t in zip(runs, answers, strict=True) if t]

    def _turn(self, place: int) -> ChoiceTokens:
        prompt, answer = self._parts(place)
        if not answer:
            raise ConfigError(f"the chat template does not render message {place}")
        prompt_ids, ids = self._ids(prompt), self._ids(prompt + answer)
        if ids[: len(prompt_ids)] == prompt_ids:
            answer_ids = ids[len(prompt_ids) :]
        else:  # a token would span prompt and answer; the engine never samples one
            answer_ids = self._ids(answer)
        images = images_of(self.messages[:place])
        return _turn_of(prompt_ids, self._up_to_the_end(answer_ids), images)

    def _parts(self, place: int) -> tuple[str, str]:
        """Return the text of an answer's prompt, and the answer's own."""
        whole = self._text(place + 1)
        try:
            prompt = self._text(place, prompt=True)
        except ConfigError:
            if place:
                raise
            prompt = self._before_first(whole)  # the template needs a message
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
        if whole.startswith(self._text(place)):  # the prompt opens thoughts that are not there
            prompt = _common(prompt, whole)
            return prompt, whole[len(prompt) :]
        # the template changed earlier messages, as Mistral's moves the system message
        return prompt, whole[_end_of(prompt, whole) :]

    def _before_first(self, whole: str) -> str:
        first = self.messages[0]
        texts = [self._render([{**first, "content": text}]) for text in _STAND_IN]
        return _common(whole, _common(*texts))

    def _text(self, count: int, *, prompt: bool = False) -> str:
        return self._render(self.messages[:count], add_generation_prompt=prompt)

    def _render(self, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, **self.options, **options
            )
        except Exception as error:
            raise ConfigError(
                f"the chat template cannot render it ({type(error).__name__}: {error})"
            ) from error
        return str(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _up_to_the_end(self, ids: list[int]) -> list[int]:
        """Return an answer up to its last end token: what a template writes after it is never
        sampled.
        """
        end = self.tokenizer.eos_token_id
        places = [place for place, token in enumerate(ids) if token == end]
        return ids[: places[-1] + 1] if places else ids


def _common(one: str, other: str) -> str:
    """Return the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _turn_of(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], images: tuple[str, ...] = ()
) -> ChoiceTokens:
    return ChoiceTokens(
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(answer_ids),
        logprobs=(math.nan,) * len(answer_ids),
        images=images,
    )


def _runs(mask: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the beginning and the end of each run of ones."""
    edges = [i for i, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _end_of(prompt: str, whole: str) -> int:
    """Return where the end of a prompt ends in a text: its longest ending that occurs there."""
    low, high = 0, len(prompt)
    while low < high:
        middle = (low + high + 1) // 2
        if prompt[-middle:] in whole:
            low = middle
        else:
            high = middle - 1
    if not low:
        raise ConfigError("the chat template renders the conversation without its last prompt")
    return whole.rfind(prompt[-low:]) + low
