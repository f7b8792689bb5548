"""An endpoint of a model's own for each trajectory: the key of a request says which one it is."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from art_core.backends import Endpoint
from art_core.client import keep_tokens, openai_package
from art_core.costs.metered import ModelMeter
from art_core.data.trajectory import Trajectory
from art_core.endpoint.host import AppHost
from art_core.recording.conversation import add_choice
from art_core.threads import Values, present

if TYPE_CHECKING:
    from starlette.applications import Starlette


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

    def add(self, request: Mapping[str, Any], completion: Mapping[str, Any]) -> None:
        """Put the choices of a completion into the trajectory, until the recording ends."""
        from openai.types.chat import ChatCompletion

        whole = keep_tokens(ChatCompletion.model_construct(**completion))
        with self._lock:
            for choice in () if self._ended else whole.choices:
                add_choice(self.trajectory, request["messages"], request.get("tools"), choice)

    def end(self) -> None:
        """Leave the trajectory alone from now on."""
        with self._lock:
            self._ended = True


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
        from art_core.recording.relay import create_relay

        return create_relay(
            self._served, self._recordings, trainable=self._trainable, meter=self._meter
        )
