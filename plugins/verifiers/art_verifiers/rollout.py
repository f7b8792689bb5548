"""A rollout of a verifiers environment: its own loop plays, its rubric gives the reward."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal

import art_core as art

_OF_THE_MODEL = frozenset({"EmptyModelResponseError", "ToolCallError", "ToolParseError"})
"""Errors of verifiers that end an attempt by a mistake of the model."""
_HTTP = frozenset({"aiohttp", "httpcore", "httpx", "httpx2"})
_SWALLOWED = "Error calling reward function"
_reward_errors: ContextVar[list[str] | None] = ContextVar("reward_errors", default=None)


def verifiers_rollout(
    environment: Any, *, options: Mapping[str, Any] | None = None, **arguments: Any
) -> Callable[[Any, Mapping[str, Any]], Awaitable[art.Trajectory]]:
    """Return an async function of a model and a scenario that plays one attempt.

    `environment` is a `verifiers.Environment`, or the name of an installed one, which is loaded
    with `arguments`. It calls the model through a recording endpoint, so that the trajectory has
    the token ids that were sampled. `options` go into each request: `{"max_tokens": 200}`.

    The reward and the metrics are those of its rubric. What fails in its infrastructure, or when a
    reward function asks a service, leaves the rollout as InfrastructureError: verifiers itself
    counts it as 0. Another exception of a reward function is 0 here too.
    Raises ConfigError for a rubric that compares a whole group, and as `load` for a name.
    """
    world = load(environment, **arguments)
    if world.requires_group_rollouts:
        raise art.ConfigError(
            "the rubric of this verifiers environment scores whole groups, and a rollout is one "
            "attempt",
            "Give it reward functions of one attempt, or judge with art.ruler_score_group.",
        )

    async def rollout(model: Any, scenario: Mapping[str, Any]) -> art.Trajectory:
        trajectory = art.Trajectory()
        with model.recording(trajectory) as endpoint, _watched_rewards() as errors:
            output = await _played(world, endpoint, scenario, options or {})
        _check(output, errors)
        trajectory.reward = output["reward"]
        trajectory.metrics |= {
            name: float(value)
            for name, value in (output.get("metrics") or {}).items()
            if isinstance(value, int | float)
        }
        trajectory.metadata |= {"stop_condition": str(output.get("stop_condition"))}
        return trajectory

    return rollout


def verifiers_scenarios(
    environment: Any,
    *,
    split: Literal["train", "eval"] = "train",
    n: int = -1,
    seed: int | None = None,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Return the rows of an environment's dataset, each with its `example_id` as `id`."""
    world = load(environment, **arguments)
    rows = world.get_dataset if split == "train" else world.get_eval_dataset
    return [{"id": str(row["example_id"]), **row} for row in rows(n, seed)]


def load(environment: Any, **arguments: Any) -> Any:
    """Return an environment, that of a name loaded; ConfigError for one that can't be loaded."""
    import verifiers

    if not isinstance(environment, str):
        if isinstance(environment, verifiers.Environment):
            return environment
        raise art.ConfigError(
            f"{environment!r:.80} is not an environment of verifiers",
            "Give a verifiers.Environment, or the name of an installed one.",
        )
    try:
        return verifiers.load_environment(environment, **arguments)
    except (Exception, SystemExit) as error:  # the package of others runs here
        cause = error.__cause__ or error
        raise art.ConfigError(
            f"the verifiers environment {environment!r} can't be loaded: "
            f"{type(cause).__name__}: {cause}"
        ) from error


async def _played(
    world: Any, endpoint: Any, scenario: Mapping[str, Any], options: Mapping[str, Any]
) -> Mapping[str, Any]:
    import openai
    from verifiers import OpenAIChatCompletionsClient

    row = {key: value for key, value in scenario.items() if key != "id"}
    sampling = {**(world.sampling_args or {}), **options}
    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        wrapped = OpenAIChatCompletionsClient(client)
        output: Mapping[str, Any] = await world.run_rollout(
            row, wrapped, endpoint.model_name, sampling
        )
    return output


def _check(output: Mapping[str, Any], reward_errors: list[str]) -> None:
    """Raise InfrastructureError for an attempt that ended by no fault of the model."""
    error = output.get("error")
    if error and error["error"] not in _OF_THE_MODEL:
        chain = error.get("error_chain_repr") or error.get("message")
        raise art.InfrastructureError(f"the verifiers environment failed: {chain}")
    if reward_errors:
        raise art.InfrastructureError(f"the rubric failed: {reward_errors[0]}")


@contextmanager
def _watched_rewards() -> Iterator[list[str]]:
    """Collect what failed when reward functions asked a service: verifiers logs it."""
    _listen()
    found: list[str] = []
    token = _reward_errors.set(found)
    try:
        yield found
    finally:
        _reward_errors.reset(token)


@cache
def _listen() -> None:
    import verifiers

    logging.getLogger(verifiers.__name__).addHandler(_RewardErrors(logging.ERROR))


class _RewardErrors(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        found, text = _reward_errors.get(), record.getMessage()
        if found is not None and text.startswith(_SWALLOWED) and _is_of_a_service(sys.exception()):
            found.append(text)


def _is_of_a_service(error: BaseException | None) -> bool:
    import openai
    import verifiers

    known = (OSError, openai.OpenAIError, verifiers.Error)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in _HTTP
