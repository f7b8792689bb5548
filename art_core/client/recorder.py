"""Recording: each trajectory has an endpoint with its own key, and requests to it extend the
conversations of the trajectory. Answers are read while their bytes arrive.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from art_core.backends import Endpoint
from art_core.base.errors import BudgetError
from art_core.base.spending import Spending, active_spending
from art_core.base.threads import Values, present
from art_core.client.meter import ModelMeter
from art_core.client.openai_client import keep_tokens, openai_package
from art_core.data.trajectory import History, Message, MessageOrChoice, Trajectory, tokens_of
from art_core.endpoint.answer import read_answer
from art_core.endpoint.errors import RequestError
from art_core.endpoint.host import AppHost
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.stream import EventData, as_text, dicts, index_of, joined
from art_core.endpoint.strict_json import any_json

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
    stored: StoredResponses = attrs.field(factory=StoredResponses, init=False)
    payers: Values = attrs.field(init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _growing: list[ReceivedAnswer] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        # an attempt elsewhere has dollars of its own
        self.payers = {active_spending: Spending(), **present()}

    @property
    def exceeded(self) -> BudgetError | None:
        """The error of the budget that refused a call of this attempt; None if none did."""
        error: BudgetError | None = self.payers[active_spending].exceeded
        return error

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
            self._served, self._recording_of, trainable=self._trainable, meter=self._meter
        )

    def _recording_of(self, key: str) -> Recording:
        recording = self._recordings.get(key)
        if recording is None:
            reason = "no recording has this key; a key is valid only inside its `with` block"
            raise RequestError(401, reason)
        return recording


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
            return now.images[: len(before.images)] == before.images
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


@attrs.define(eq=False)
class ReceivedAnswer:
    """The part of an answer that has arrived. `ended` means that nothing is missing."""

    request: Mapping[str, Any]
    ended: bool = False
    _bytes: bytearray = attrs.field(factory=bytearray)
    _events: EventData = attrs.field(factory=EventData)
    _chunks: list[Mapping[str, Any]] = attrs.field(factory=list)
    _seen: set[int] = attrs.field(factory=set)
    _finished: set[int] = attrs.field(factory=set)
    _failed: bool = False
    _is_json: bool | None = None

    def feed(self, part: bytes) -> None:
        """Add the next bytes."""
        self._bytes += part
        if self._is_json is None and self._bytes.strip():
            self._is_json = self._bytes.lstrip().startswith((b"{", b"["))
        if self._is_json is False and b"\n" in part:
            self._take_all(self._events.feed(bytes(self._bytes)))
            self._bytes.clear()

    def end(self) -> None:
        """Read the rest: all bytes have arrived, and the last line may have no end."""
        if self._is_json is False:
            self._take_all([*self._events.feed(bytes(self._bytes)), *self._events.end()])
        self.ended = self.ended or bool(self._is_json) or self._all_finished()

    @property
    def is_whole(self) -> bool:
        """True if the answer has ended or each choice is finished."""
        requested = self.request.get("n")
        choices = requested if isinstance(requested, int) else 1
        return self.ended or len(self._finished) >= max(1, choices)

    def completion(self) -> dict[str, Any]:
        """Return the chat completion; one of an error has no choices."""
        if self._is_json:
            value = any_json(bytes(self._bytes))
            whole = dict(value) if isinstance(value, Mapping) else {}
        else:
            whole = joined(self._chunks)
        given = enumerate(dicts(whole.get("choices")))
        choices = [_choice(choice, place) for place, choice in given]
        return {**whole, "choices": [choice for choice in choices if choice is not None]}

    def _all_finished(self) -> bool:
        return bool(self._seen) and self._seen <= self._finished

    def _take_all(self, events: Iterable[bytes]) -> None:
        for data in events:
            self._take(data)

    def _take(self, data: bytes) -> None:
        if data.startswith(b"[DONE]"):
            self.ended = not self._failed or self._all_finished()
            return
        try:
            chunk = any_json(data)
        except ValueError:
            return  # the agent's client cannot read it either
        if not isinstance(chunk, Mapping):
            return
        self._chunks.append(chunk)
        self._failed = self._failed or bool(chunk.get("error"))
        pieces = [*enumerate(dicts(chunk.get("choices")))]
        self._seen |= {index_of(piece, place) for place, piece in pieces}
        self._finished |= {index_of(p, place) for place, p in pieces if p.get("finish_reason")}


def _choice(choice: Mapping[str, Any], place: int) -> dict[str, Any] | None:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        return None
    if "tool_calls" in message:
        calls = [_call(call) for call in dicts(message["tool_calls"])]
        message = {**message, "tool_calls": calls or None}
    reason = choice.get("finish_reason") or "stop"
    return {**choice, "index": index_of(choice, place), "finish_reason": reason, "message": message}


def _call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    return {**call, "function": {**function, "arguments": as_text(function.get("arguments"))}}
