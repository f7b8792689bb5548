"""LeasedModel: the model of a run on another machine, for the rollouts of a worker."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, ClassVar

import attrs

from art_core.backends import Endpoint
from art_core.base.errors import ConfigError
from art_core.model.model import Model

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_key: ContextVar[str] = ContextVar("art_lease_key", default="")


@attrs.define(kw_only=True, eq=False)
class LeasedModel(Model):
    """A model that a gateway serves. Each attempt calls it with the key of its own lease, so that
    the gateway records the calls; choices have the engine's tokens, as those of a trained model.
    """

    _trainable: ClassVar[bool] = True

    def begin(self, key: str) -> None:
        """Have the calls of the task that runs belong to a lease."""
        _key.set(key)

    def endpoint(self) -> Endpoint:
        """Return the endpoint that serves the model, with the key of the attempt that runs."""
        if not _key.get():
            raise ConfigError("the model of a worker can only be called inside a rollout")
        return attrs.evolve(super().endpoint(), api_key=_key.get())

    def openai_client(self) -> AsyncOpenAI:
        """Return an OpenAI client of the endpoint, with the key of the attempt that runs."""
        endpoint = self.endpoint()
        return super().openai_client().with_options(api_key=endpoint.api_key)
