"""An endpoint of a model's own for each trajectory: the key of a request says which one it is."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from art_core.backends import Endpoint
from art_core.base.threads import Values, present
from art_core.client.conversation import add_choice
from art_core.client.openai_client import keep_tokens, openai_package
from art_core.client.received import ReceivedAnswer
from art_core.costs.metered import ModelMeter
from art_core.data.trajectory import Trajectory
from art_core.endpoint.host import AppHost

if TYPE_CHECKING:
    from starlette.applications import Starlette

log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class Recording:
    """A trajectory while it is recorded. Its requests belong to a context, "train" or "eval"; those
    that are `unconstrained` go without what would force the form of an answer.
    """

    trajectory: Trajectory
    context: str = ""
    unconstrained: bool = False
    payers: Values = attrs.field(factory=present, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _ended: bool = attrs.field(default=False, init=False)

    _growing: list[ReceivedAnswer] = attrs.field(factory=list, init=False)

    def begin(self, request: Mapping[str, Any]) -> ReceivedAnswer:
        """Begin to record the answer to a request. Earlier answers that are whole are kept first:
        the agent has what it waited for.
        """
        received = ReceivedAnswer(request)
        with self._lock:
            self._keep_whole_ones()
            self._growing.append(received)
        return received

    def add(self, received: ReceivedAnswer, part: bytes) -> None:
        """Take bytes of an answer, and keep its choices if these were the last ones."""
        with self._lock, _never_raising():
            received.add(part)
            if received.ended:
                self._keep(received)

    def finish(self, received: ReceivedAnswer, *, ended: bool) -> None:
        """Keep an answer of which no more comes: it `ended`, or the agent has gone away."""
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
        """Keep what is whole, and leave the trajectory alone from now on."""
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
    """Report what fails in recording; the agent must get its answer."""
    try:
        yield
    except Exception:
        log.warning("an answer could not be recorded; the agent has it", exc_info=True)


class Recorder(AppHost):
    """Passes the requests of any number of recordings on to a served model; with `trainable`, they
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
        """Give an endpoint whose key stands for a recording while the block lasts."""
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
