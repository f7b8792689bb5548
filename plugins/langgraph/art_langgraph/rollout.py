"""Rollouts whose chat models are recorded, and the chat model inside one."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec

import attrs

import art_core as art

P = ParamSpec("P")
Rollout = Callable[P, Awaitable[art.Trajectory]]
PROVIDERS = ("openai", "anthropic")


@attrs.frozen
class _Trained:
    """The endpoint of the rollout that runs, and the names that mean its model."""

    endpoint: art.Endpoint
    names: frozenset[str | None]

    def is_named(self, model: str | None) -> bool:
        """Whether a name means the trained model, or one of its steps."""
        return model in self.names or str(model).startswith(f"{self.endpoint.model_name}@")


_trained: ContextVar[_Trained | None] = ContextVar("art_langgraph_trained", default=None)


def wrap_rollout(
    model: art.Model, rollout: Rollout[P], *, unconstrained: bool = False
) -> Rollout[P]:
    """Return a rollout that records the chat models which `init_chat_model` makes inside.

    The conversations replace `messages_and_choices`, `tools` and `additional_histories` of the
    trajectory that `rollout` returns, unless it never asked the model. `unconstrained` is that of
    `model.recording`. The rollout raises TypeError if it returns something other than a trajectory.
    """

    @functools.wraps(rollout)
    async def recorded(*args: P.args, **kwargs: P.kwargs) -> art.Trajectory:
        seen = art.Trajectory()
        with model.recording(seen, unconstrained=unconstrained) as endpoint:
            names = {None, model.name, endpoint.model_name, getattr(model, "base_model", None)}
            with _inside(_Trained(endpoint, frozenset(names))):
                trajectory = await rollout(*args, **kwargs)
        if not isinstance(trajectory, art.Trajectory):
            raise TypeError(f"a wrapped rollout returns an art.Trajectory; got {trajectory!r}")
        if seen.messages_and_choices or seen.additional_histories:
            trajectory.messages_and_choices = seen.messages_and_choices
            trajectory.tools = seen.tools
            trajectory.additional_histories = seen.additional_histories
        return trajectory

    return recorded


@contextmanager
def _inside(trained: _Trained) -> Iterator[None]:
    token = _trained.set(trained)
    try:
        yield
    finally:
        _trained.reset(token)


def init_chat_model(
    model: str | None = None, *, model_provider: str | None = None, **options: Any
) -> Any:
    """Return a chat model of LangChain, with all its options: inside a rollout of `wrap_rollout`
    the trained model, or by another name that model, which is not recorded.

    `model` may be left out, or be the trained model's `name`, `name@step` or `base_model`.
    `model_provider` is "openai" (with `use_responses_api=True` over Responses) or "anthropic"
    (over Messages).
    ConfigError outside a wrapped rollout without a model, and for another provider.
    """
    from langchain.chat_models import init_chat_model as chat_model

    trained = _trained.get()
    if trained is None and model is None:
        raise art.ConfigError(
            "init_chat_model without a model gives the trained one, inside a rollout only: make it "
            "in the function that you pass to wrap_rollout, or name a model"
        )
    if trained is None or not trained.is_named(model):
        return chat_model(model, model_provider=model_provider, **options)
    provider = model_provider or PROVIDERS[0]
    if provider not in PROVIDERS:
        known = ", ".join(PROVIDERS)
        raise art.ConfigError(f"the trained model is reached through {known}; got {provider!r}")
    url = trained.endpoint.base_url
    url = url.removesuffix("/v1") if provider == "anthropic" else url
    address = {"base_url": url, "api_key": trained.endpoint.api_key}
    name = model if model and "@" in model else trained.endpoint.model_name
    return chat_model(name, model_provider=provider, **address, **options)
