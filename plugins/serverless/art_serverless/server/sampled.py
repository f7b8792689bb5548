"""The tokens of sampled answers, remembered for clients that send choices without tokens."""

from __future__ import annotations

import hashlib
import itertools
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import orjson

MAX_NUMBERS = 1 << 24
"""Limit for the remembered token ids and log-probs of all models together: 128 MiB."""


@attrs.frozen(kw_only=True, eq=False)
class SampledAnswer:
    """One answer: the ids of its prompt, its own ids and their log-probs, as the engine sent them.

    `context` is the digest of the messages before it. `policy_version` and `sampling` are None if
    the endpoint did not send them. `images` are the digests of the prompt's images.
    """

    context: bytes
    prompt_ids: array[int]
    token_ids: array[int]
    logprobs: array[float]
    policy_version: int | None = None
    sampling: Mapping[str, Any] | None = None
    grammar: str | None = None
    images: Sequence[str] = ()

    @property
    def size(self) -> int:
        """The number of numbers held."""
        return len(self.prompt_ids) + len(self.token_ids) + len(self.logprobs)

    def added_to(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Return a choice with the answer's tokens."""
        entries = _entries(choice)
        if [e.get("logprob") for e in entries] != list(self.logprobs):
            entries = [{"logprob": value} for value in self.logprobs]
        more: dict[str, Any] = {
            "prompt_token_ids": list(self.prompt_ids),
            "token_ids": list(self.token_ids),
            "logprobs": {"content": entries},
        }
        if self.policy_version is not None:
            more["policy_version"] = self.policy_version
        if self.sampling:
            more["sampling"] = dict(self.sampling)
        if self.images:
            more["prompt_images"] = list(self.images)
        if self.grammar:
            more["grammar"] = self.grammar
        return {"finish_reason": None, **choice, **more}


@attrs.define
class FilledGroups:
    """Trajectory groups of a request. `unknown` lists the choices whose tokens are not known,
    `with_tokens` counts the choices that were sent with their tokens.
    """

    groups: list[dict[str, Any]] = attrs.field(factory=list)
    unknown: list[str] = attrs.field(factory=list)
    with_tokens: int = 0

    def problem(self) -> str | None:
        """Return the reason why the groups can't be trained on, if any.

        If a client sends tokens with some choices, the others are not a problem: training leaves
        their conversations out.
        """
        if not self.unknown or self.with_tokens:
            return None
        return (
            f"{self.unknown[0]} ({len(self.unknown)} in all) is not an answer of this model that "
            "this server sampled, or it is forgotten after a restart or many newer ones. Send each "
            "choice as POST /v1/chat/completions answered it, after the same messages; or with "
            "prompt_token_ids, token_ids and logprobs.content, which a request with "
            "return_token_ids and logprobs gets."
        )


class SampledAnswers:
    """Remembers the newest answers of all models. Safe under threads.

    An answer is found by its model, its text and tool calls, and the messages before it. If the
    choice has log-probs, it is also found by these, after any messages. Of equal answers the newest
    counts.
    """

    def __init__(self, max_numbers: int = MAX_NUMBERS) -> None:
        self._max_numbers = max_numbers
        self._size = 0
        self._numbers = itertools.count()
        self._answers: OrderedDict[int, tuple[tuple[str, bytes], SampledAnswer]] = OrderedDict()
        self._index: dict[tuple[str, bytes], list[int]] = {}
        self._lock = threading.Lock()

    def remember(
        self, model_id: str, messages: Sequence[Any], completion: Mapping[str, Any]
    ) -> None:
        """Remember the choices of a chat completion that have their tokens."""
        context = _context(messages)
        prompt_ids = array("I", completion.get("prompt_token_ids") or ())
        for choice in completion["choices"]:
            entries, token_ids = _entries(choice), choice.get("token_ids")
            if not prompt_ids or token_ids is None or len(entries) != len(token_ids):
                continue
            answer = SampledAnswer(
                context=context,
                prompt_ids=prompt_ids,
                token_ids=array("I", token_ids),
                logprobs=array("d", [entry["logprob"] for entry in entries]),
                policy_version=completion.get("policy_version"),
                sampling=completion.get("sampling"),
                images=completion.get("prompt_images") or (),
                grammar=completion.get("grammar"),
            )
            self._add((model_id, _line(choice["message"])), answer)

    def forget(self, model_id: str) -> None:
        """Forget the answers of a model."""
        with self._lock:
            for number in [n for n, (key, _) in self._answers.items() if key[0] == model_id]:
                self._drop(number)

    def filled(self, model_id: str, groups: Sequence[Mapping[str, Any]]) -> FilledGroups:
        """Return checked trajectory groups with the tokens of their choices where known."""
        filled = FilledGroups()
        for n, group in enumerate(groups):
            trajectories = [
                self._trajectory(model_id, t, f"trajectory_groups[{n}].trajectories[{m}]", filled)
                for m, t in enumerate(group.get("trajectories") or ())
            ]
            filled.groups.append({**group, "trajectories": trajectories})
        return filled

    def _trajectory(
        self, model_id: str, value: Mapping[str, Any], where: str, filled: FilledGroups
    ) -> dict[str, Any]:
        whole = self._history(model_id, value, where, filled)
        whole["additional_histories"] = [
            self._history(model_id, history, f"{where}.additional_histories[{n}]", filled)
            for n, history in enumerate(value.get("additional_histories") or ())
        ]
        return whole

    def _history(
        self, model_id: str, value: Mapping[str, Any], where: str, filled: FilledGroups
    ) -> dict[str, Any]:
        digest, items = _digest(), []
        for n, item in enumerate(value.get("messages_and_choices") or ()):
            found = None
            if is_choice(item) and has_tokens(item):
                filled.with_tokens += 1
            elif is_choice(item):
                found = self._found(model_id, item, digest.digest())
                filled.unknown += [f"{where}.messages_and_choices[{n}]"] if found is None else []
            items.append(item if found is None else found.added_to(item))
            digest.update(_line(item["message"] if is_choice(item) else item))
        return {**value, "messages_and_choices": items}

    def _found(
        self, model_id: str, choice: Mapping[str, Any], context: bytes
    ) -> SampledAnswer | None:
        logprobs = [entry.get("logprob") for entry in _entries(choice)]
        with self._lock:
            numbers = self._index.get((model_id, _line(choice["message"])), [])
            answers = [self._answers[number][1] for number in reversed(numbers)]
        exact = (a for a in answers if logprobs and list(a.logprobs) == logprobs)
        after = (a for a in answers if a.context == context)
        return next(itertools.chain(exact, after), None)

    def _add(self, key: tuple[str, bytes], answer: SampledAnswer) -> None:
        with self._lock:
            number = next(self._numbers)
            self._answers[number] = key, answer
            self._index.setdefault(key, []).append(number)
            self._size += answer.size
            while self._size > self._max_numbers:
                self._drop(next(iter(self._answers)))

    def _drop(self, number: int) -> None:
        key, answer = self._answers.pop(number)
        self._size -= answer.size
        self._index[key].remove(number)
        if not self._index[key]:
            del self._index[key]


def is_choice(item: Any) -> bool:
    """Return True for a choice of a chat completion, False for a message."""
    return isinstance(item, Mapping) and isinstance(item.get("message"), Mapping)


def has_tokens(choice: Mapping[str, Any]) -> bool:
    """Return True if a choice has the token ids of prompt and answer, and their log-probs."""
    token_ids = choice.get("token_ids")
    if not isinstance(token_ids, list) or not choice.get("prompt_token_ids"):
        return False
    return len(_entries(choice)) == len(token_ids)


def _entries(choice: Mapping[str, Any]) -> list[Any]:
    logprobs = choice.get("logprobs")
    entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    whole = isinstance(entries, list) and all(isinstance(e, Mapping) for e in entries)
    return entries if whole and entries else []


def _digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def _context(messages: Sequence[Any]) -> bytes:
    digest = _digest()
    for message in messages:
        digest.update(_line(message))
    return bytes(digest.digest())


def _line(message: Mapping[str, Any]) -> bytes:
    """Return a message in one form: clients leave out, or add, fields without values."""
    given = message.get("tool_calls")
    calls = [_call(call) for call in given] if isinstance(given, list) else []
    fields = [message.get("role", "assistant"), _text(message.get("content")), calls]
    return orjson.dumps([*fields, message.get("tool_call_id"), message.get("name")]) + b"\n"


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    return [call.get("id"), function.get("name"), function.get("arguments")]


def _text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content]
        return "".join(texts) if all(isinstance(t, str) for t in texts) else content
    return content or ""
