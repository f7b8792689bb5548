"""LangGraph agents in rollouts: their calls are recorded, with token ids."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import art_core
from art.trajectories import Trajectory

__all__ = ["init_chat_model", "wrap_rollout"]

_endpoint: ContextVar[art_core.Endpoint | None] = ContextVar("langgraph_endpoint", default=None)


def wrap_rollout(
    model: art_core.Model, fn: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return a rollout whose calls of `init_chat_model`'s model fill the trajectory it returns."""

    @functools.wraps(fn)
    async def recorded(*args: Any, **kwargs: Any) -> Any:
        heard = Trajectory()
        with model.recording(heard) as endpoint:
            token = _endpoint.set(endpoint)
            try:
                result = await fn(*args, **kwargs)
            finally:
                _endpoint.reset(token)
        if heard.messages_and_choices:
            result.messages_and_choices = heard.messages_and_choices
            result.tools = heard.tools
            result.additional_histories = [
                *result.additional_histories,
                *heard.additional_histories,
            ]
        return result

    return recorded


def init_chat_model(
    model: str | None = None, *, model_provider: str | None = None, **options: Any
) -> Any:
    """Return LangChain's chat model of the rollout's endpoint, inside a rollout of `wrap_rollout`.

    Options go to `ChatOpenAI`; `temperature` is 1 by default. `model` is read if it names a step of
    the model, `name@step`; any other name, and `model_provider`, mean the rollout's model.
    """
    endpoint = _endpoint.get()
    if endpoint is None:
        raise art_core.ConfigError(
            "init_chat_model belongs into a rollout that wrap_rollout has wrapped",
            "Give the rollout as wrap_rollout(model, rollout).",
        )
    try:
        from langchain_openai import ChatOpenAI
    except ImportError as error:
        raise art_core.ConfigError(
            "init_chat_model needs langchain-openai", "pip install 'art-compat[langgraph]'"
        ) from error
    step = model is not None and model.startswith(f"{endpoint.model_name}@")
    return ChatOpenAI(
        **{"temperature": 1.0, **options},
        model=model if step and model else endpoint.model_name,
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
    )
