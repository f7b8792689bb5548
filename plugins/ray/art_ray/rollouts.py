"""Rollouts as tasks: each attempt runs on any node, and its trajectory comes back as data."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs

import art_core as art
from art_core import ConfigError, Endpoint, RolloutError, Trajectory, TrajectoryGroup
from art_ray.nodes import reach_directly
from art_ray.options import RolloutResources

Rollout = Callable[..., Awaitable[Any]]


@attrs.define(kw_only=True, eq=False)
class ServedModel(art.Model):
    """The trained model in a task: its names and its endpoint. Answers carry token ids."""

    _trainable = True

    base_model: str = ""
    step: int = 0
    step_suffix: str = "@{step}"

    async def get_step(self) -> int:
        """Return the training step that the model was at when the task began."""
        return self.step

    def endpoint(self) -> Endpoint:
        """Return the endpoint on the driver."""
        return attrs.evolve(super().endpoint(), step_suffix=self.step_suffix)


@attrs.frozen(kw_only=True)
class PaidCall:
    """A paid call of a task, to be booked on the driver; `usd` is None if it has no price."""

    source: str
    provider: str
    model_name: str
    input_tokens: int
    output_tokens: int
    usd: float | None


@attrs.frozen(kw_only=True)
class TaskResult:
    """The end of a task: what the rollout returned or raised, pickled, and its paid calls."""

    returned: bytes | None
    raised: bytes | None
    calls: tuple[PaidCall, ...]


def remote_rollout(rollout: Rollout, **resources: Any) -> Rollout:
    """Return a rollout that runs as a Ray task: `await remote(model, ...)` gives its trajectory.

    `resources` are `num_cpus`, `num_gpus`, `resources` and `max_retries`; by default those of the
    backend's option `rollouts`. A task whose node is lost runs again; an error of the rollout is
    raised here, as without Ray. The rollout and its arguments are pickled; the model that it gets
    there has the endpoint, the names, `config`, `openai_client()`, `get_inference_name()`,
    `recording()` and `get_step()` of this one. Paid calls are booked here.
    """
    given = RolloutResources.of("remote_rollout", resources) if resources else None

    @functools.wraps(rollout)
    async def remote(model: Any, *arguments: Any, **named: Any) -> Any:
        import ray
        from ray import cloudpickle

        chosen = given or getattr(getattr(model, "backend", None), "rollouts", None)
        chosen = chosen or RolloutResources()
        if not ray.is_initialized():
            raise ConfigError(
                "rollouts run as tasks of a Ray cluster, and this process is in none",
                'Register the model with art.backend("ray", ...), or call ray.init().',
            )
        values = await _values_of(model)
        task = ray.remote(run_attempt).options(
            **chosen.requested(), max_retries=chosen.max_retries, retry_exceptions=False
        )
        reference = task.remote(rollout, values, arguments, named)
        try:
            attempt: TaskResult = await reference
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        for call in attempt.calls:
            _book(call)
        if attempt.raised is not None:
            raise cloudpickle.loads(attempt.raised)
        return cloudpickle.loads(attempt.returned)

    return remote


async def _values_of(model: Any) -> dict[str, Any]:
    """Return what a task needs of a model."""
    served: Endpoint = model.endpoint()
    return {
        "name": model.name,
        "project": model.project,
        "config": model.config,
        "base_model": str(getattr(model, "base_model", "")),
        "step": await model.get_step(),
        "inference_model_name": served.model_name,
        "inference_base_url": served.base_url,
        "inference_api_key": served.api_key,
        "step_suffix": served.step_suffix,
    }


def run_attempt(
    rollout: Rollout,
    values: Mapping[str, Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> TaskResult:
    """Run a rollout in this process, which is a task's."""
    reach_directly(values["inference_base_url"])
    return asyncio.run(_attempted(rollout, values, arguments, named))


async def _attempted(
    rollout: Rollout,
    values: Mapping[str, Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> TaskResult:
    errors: list[Exception] = []
    found: list[Any] = []

    async def caught(model: ServedModel) -> Trajectory:
        try:
            found.append(await rollout(model, *arguments, **named))
        except Exception as error:
            errors.append(error)
        return Trajectory()

    async with ServedModel(sinks=[], base_path=os.devnull, **values) as model:
        # gathered, so that paid calls belong to the group
        (group,) = await art.gather_trajectory_groups(
            [TrajectoryGroup([caught(model)])], pbar_desc=None
        )
        calls = tuple(_paid(call) for account in group.accounts() for call in account.take())
    if not errors:
        try:
            return TaskResult(
                returned=_pickled(_without_accounts(found[0])), raised=None, calls=calls
            )
        except Exception as error:
            name = type(found[0]).__name__
            errors.append(RolloutError(f"the {name} of a task can't be pickled: {error}"))
    try:
        return TaskResult(returned=None, raised=_pickled(errors[0]), calls=calls)
    except Exception:
        text = f"{type(errors[0]).__name__}: {errors[0]}"
        return TaskResult(returned=None, raised=_pickled(RolloutError(text)), calls=calls)


def _pickled(value: Any) -> bytes:
    from ray import cloudpickle

    found: bytes = cloudpickle.dumps(value)
    return found


def _without_accounts(returned: Any) -> Any:
    """Return copies of trajectories, whose paid calls are booked elsewhere."""
    if isinstance(returned, Trajectory):
        return attrs.evolve(returned)
    if isinstance(returned, Mapping):
        return {name: _without_accounts(each) for name, each in returned.items()}
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        return [_without_accounts(each) for each in returned]
    return returned


def _paid(call: Any) -> PaidCall:
    usage = call.usage
    return PaidCall(
        source=call.source,
        provider=call.provider,
        model_name=call.model_name,
        input_tokens=0 if usage is None else usage.input_tokens,
        output_tokens=0 if usage is None else usage.output_tokens,
        usd=call.quote(),
    )


def _book(call: PaidCall) -> None:
    """Book a call for whom it would be booked if it had been made here."""
    usage: dict[str, Any] = {
        "prompt_tokens": call.input_tokens,
        "completion_tokens": call.output_tokens,
    }
    answer = {} if call.usd is None else {"usage": {**usage, "cost": call.usd}}
    art.track_api_cost(
        source=call.source,
        provider=call.provider,
        model_name=call.model_name,
        prompt_per_million=0.0,
        completion_per_million=0.0,
    )(lambda: answer)()
