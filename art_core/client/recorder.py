"""Recording: each trajectory has an endpoint with its own key, and requests to it extend the
conversations of the trajectory.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from art_core.backends import Endpoint
from art_core.base.threads import Values, present
from art_core.client.openai_client import keep_tokens, openai_package
from art_core.client.received import ReceivedAnswer
from art_core.costs.metered import ModelMeter
from art_core.data.trajectory import History, Message, MessageOrChoice, Trajectory, tokens_of
from art_core.endpoint.answer import read_answer
from art_core.endpoint.host import AppHost

if TYPE_CHECKING:
    from starlette.applications import Starlette


log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class Recording:
    """A trajectory while it is recorded. Its requests belong to a context, "train" or "eval". With
    `unconstrained`, request fields that force the form of an answer are removed.
    """

    trajectory: Trajectory
    context: str = ""
    unconstrained: bool = False
    payers: Values = attrs.field(factory=present, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _growing: list[ReceivedAnswer] = attrs.field(factory=list, init=False)

    def begin(self, request: Mapping[str, Any]) -> ReceivedAnswer:
        """Begin to record the answer to a request; keep earlier answers that are whole first."""
        received = ReceivedAnswer(request)
        with self._lock:
            self._keep_whole_ones()
            self._growing.append(received)
        return received

    def add(self, received: ReceivedAnswer, part: bytes) -> None:
        """Add bytes of an answer, and keep its choices if these were the last ones."""
        with self._lock, _never_raising():
            received.feed(part)
            if received.ended:
                self._keep(received)

    def finish(self, received: ReceivedAnswer, *, ended: bool) -> None:
        """Keep an answer that gets no more bytes: it `ended`, or the agent has disconnected."""
        with self._lock, _never_raising():
            if ended:
                received.end()
            if received.is_whole:
                self._keep(received)
            elif ended and received in self._growing:
                log.warning("a stream broke off before its answer was whole; it is not recorded")
        with self._lock:
            self._growing = [each for each in self._growing if each is not received]

    def end(self) -> None:
        """Keep the answers that are whole; the trajectory is not changed any more."""
        with self._lock:
            self._keep_whole_ones()
            self._ended = True

    def _keep_whole_ones(self) -> None:
        for received in [each for each in self._growing if each.is_whole]:
            with _never_raising():
                self._keep(received)

    def _keep(self, received: ReceivedAnswer) -> None:
        """Put the choices of an answer into the trajectory, once."""
        from openai.types.chat import ChatCompletion

        if received not in self._growing or self._ended:
            return
        self._growing.remove(received)
        completion = ChatCompletion.model_construct(**received.completion())
        request = received.request
        for choice in keep_tokens(completion).choices:
            add_choice(self.trajectory, request["messages"], request.get("tools"), choice)


@contextmanager
def _never_raising() -> Iterator[None]:
    """Log an error of the recording; the agent must get its answer."""
    try:
        yield
    except Exception:
        log.warning("an answer could not be recorded; the agent has it", exc_info=True)


class Recorder(AppHost):
    """Forwards the requests of any number of recordings to a served model; with `trainable`, they
    ask for token ids and log-probs too.
    """

    def __init__(
        self, served: Endpoint, *, trainable: bool, meter: ModelMeter | None = None
    ) -> None:
        self._served = served
        self._trainable = trainable
        self._meter = meter
        self._recordings: dict[str, Recording] = {}
        super().__init__(self._app)

    @contextmanager
    def recorded(self, recording: Recording) -> Iterator[Endpoint]:
        """Return an endpoint whose key belongs to a recording while the block lasts."""
        key = secrets.token_urlsafe(32)
        self._recordings[key] = recording
        try:
            yield attrs.evolve(self._served, base_url=self.base_url, api_key=key)
        finally:
            del self._recordings[key]
            recording.end()

    def _app(self) -> Starlette:
        openai_package()
        from art_core.client.relay import create_relay

        return create_relay(
            self._served, self._recordings, trainable=self._trainable, meter=self._meter
        )


_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
"""Kinds of content parts that are not part of the answer."""


def add_choice(
    trajectory: Trajectory,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    choice: MessageOrChoice,
) -> None:
    """Append a request's new messages and the choice that answers it to the conversation that the
    request continues: its messages repeat those of the conversation, or its prompt begins with the
    tokens. Messages that continue none begin another conversation.
    """
    for history in reversed(trajectory.histories()):
        if _continues(history, messages, choice):
            added = messages[len(history.messages_and_choices) :]
            history.messages_and_choices += [*added, choice]
            break
    else:
        another = History(messages_and_choices=[*messages, choice], tools=tools)
        trajectory.additional_histories.append(another)
        return
    if history.messages_and_choices is trajectory.messages_and_choices:
        trajectory.tools = trajectory.tools or tools


def _continues(history: History, messages: Sequence[Message], choice: MessageOrChoice) -> bool:
    known = history.messages()
    if len(known) >= len(messages):
        return False
    before = tokens_of(history.messages_and_choices[-1]) if known else None
    now = tokens_of(choice)
    if before and now:
        ids = before.prompt_ids + before.completion_ids
        if now.prompt_ids[: len(ids)] == ids:
            return True
    return [*map(_compared, known)] == [*map(_compared, messages[: len(known)])]


def _compared(message: Message) -> tuple[Any, ...]:
    """Return a message in a form to compare: clients send answers back in several forms."""
    role = message.get("role")
    role = "system" if role == "developer" else role
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    called = [(call.get("name"), _parsed(call.get("arguments"))) for call in calls]
    text = _text(message.get("content"))
    if role == "assistant":
        refusal = message.get("refusal") or ""
        text = _without_thoughts(text) + ("" if refusal in text else refusal)
    return role, text.strip(), called


def _without_thoughts(text: str) -> str:
    """Return an answer without its thoughts, which clients may leave out when they send it back."""
    return read_answer(text, {}).content


def _text(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _THOUGHTS:
        return ""
    text = part.get(kind, part.get("text")) if kind is not None else part
    return text if isinstance(text, str) else json.dumps(part, sort_keys=True, default=repr)


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments or "{}")
    except (TypeError, ValueError, RecursionError):
        return arguments
