"""Environments: the world of one attempt, which answers the model and scores what it did.

`rollout_of` makes a rollout of an environment: for gathering, training and evaluation.
"""

from __future__ import annotations

import inspect
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from art_core.base.errors import ConfigError, RolloutError
from art_core.data.trajectory import Message, MessageOrChoice, Trajectory, message_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger("art_core")

_METHODS = ("reset", "respond", "score", "close")
_TOO_LONG = "context_length_exceeded"


class Environment(Protocol):
    """The world of one attempt at a task: it answers the model's messages and scores the attempt.

    Subclass it. Each attempt has an object of its own. What is random must follow from the
    scenario, for example from a seed in it. A mistake of the model is answered with a message. An
    exception means that the environment failed: the attempt becomes a failure of its group.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    """Tools that the model may call, in OpenAI's form; read once, after `reset`."""
    max_turns: int = 20
    """Messages of the model after which an attempt ends."""

    @abstractmethod
    async def reset(self, scenario: Any) -> Sequence[Message]:
        """Begin an attempt at a scenario; return the first messages."""

    @abstractmethod
    async def respond(self, message: Message) -> Sequence[Message] | None:
        """Return the messages that follow one of the model's; None when the attempt is over.

        A tool call of the model needs a message of the role "tool" with its `tool_call_id`.
        """

    @abstractmethod
    async def score(self, trajectory: Trajectory) -> float:
        """Return the reward of the finished attempt; `art.reward` adds up parts."""

    async def close(self) -> None:
        """Release what the attempt holds. It is called once, after an error too."""


def rollout_of(
    environment: Callable[[], Environment],
    *,
    max_turns: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Any, Any], Awaitable[Trajectory]]:
    """Return an async function of a model and a scenario that plays one attempt.

    `environment` is a class, or a function that makes an environment: it is called once per
    attempt. `max_turns` replaces the environment's. `options` go into each request of the model:
    `{"max_tokens": 200}`. The attempt ends when the environment ends it, after `max_turns`, or when
    the conversation no longer fits into the model's context; then it is scored. The metric `turns`
    is the number of the model's messages; `unfinished` is 1 unless the environment ended it.

    Raises ConfigError for an object that makes no environment. In the rollout, an endpoint that
    fails and an exception of the environment leave as they are: the attempt is a failure, which has
    no reward.
    """
    if not makes_environments(environment):
        raise ConfigError(
            f"rollout_of takes a class or a function that makes an environment, got "
            f"{environment!r:.80}",
            "Each attempt has an environment of its own: give the class, or a lambda.",
        )
    if max_turns is not None and max_turns < 1:
        raise ConfigError(f"max_turns must be at least 1, got {max_turns}")

    async def rollout(model: Any, scenario: Any) -> Trajectory:
        async with _opened(environment) as world:
            limit = world.max_turns if max_turns is None else max_turns
            trajectory = await _played(world, model, scenario, limit, options or {})
            trajectory.reward = await world.score(trajectory)
            return trajectory

    return rollout


def makes_environments(target: Any) -> bool:
    """Return whether a target is an environment's class, or a function without parameters."""
    if isinstance(target, type):
        return all(hasattr(target, name) for name in _METHODS)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in optional for p in parameters)


@asynccontextmanager
async def _opened(environment: Callable[[], Environment]) -> AsyncIterator[Environment]:
    world = environment()
    lacking = [name for name in _METHODS if not hasattr(world, name)]
    if lacking:
        raise ConfigError(
            f"{type(world).__name__} is no environment: it has no {', '.join(lacking)}",
            "Subclass art.Environment.",
        )
    try:
        yield world
    finally:
        try:
            await world.close()
        except Exception:  # the attempt itself is not lost
            log.warning("an environment could not be closed: %r", world, exc_info=True)


async def _played(
    world: Environment, model: Any, scenario: Any, max_turns: int, options: Mapping[str, Any]
) -> Trajectory:
    first = _checked(world, "reset", await world.reset(scenario))
    tools = [dict(tool) for tool in world.tools]
    trajectory = Trajectory(messages_and_choices=first, tools=tools or None)
    request = {
        "model": model.get_inference_name(),
        **({"tools": tools} if tools else {}),
        **options,
    }
    client = model.openai_client()
    turns, following = 0, first
    while following and turns < max_turns:
        choice = await _next_choice(client, trajectory, request)
        if choice is None:
            break
        turns += 1
        trajectory.messages_and_choices.append(choice)
        answer = await world.respond(message_of(choice))
        following = [] if answer is None else _checked(world, "respond", answer)
        trajectory.messages_and_choices += following
    trajectory.metrics |= {"turns": turns, "unfinished": float(bool(following))}
    return trajectory


async def _next_choice(
    client: Any, trajectory: Trajectory, request: Mapping[str, Any]
) -> MessageOrChoice | None:
    """Return the model's next choice; None if a conversation has grown too long for its context."""
    try:
        completion = await client.chat.completions.create(messages=trajectory.messages(), **request)
    except Exception as error:
        begun = any(m.get("role") == "assistant" for m in trajectory.messages())
        if begun and getattr(error, "code", None) == _TOO_LONG:
            return None
        raise
    return completion.choices[0]


def _checked(world: Environment, method: str, messages: Any) -> list[Message]:
    """Return copies of an environment's messages; RolloutError for anything else."""
    fits = (
        isinstance(messages, Sequence)
        and bool(messages)
        and all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages)
        and messages[-1]["role"] != "assistant"
    )
    if not fits:
        raise RolloutError(
            f"{method} of {type(world).__name__} returned {messages!r:.80}",
            "Return messages such as {'role': 'user', 'content': ...}, the last one not of the "
            "role 'assistant'" + ("; None ends the attempt." if method == "respond" else "."),
        )
    return [dict(message) for message in messages]
