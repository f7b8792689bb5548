"""The outcome of a rollout: a trajectory that is checked, or a failure."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

from art_core.base.errors import ConfigError
from art_core.data.failure import RolloutFailure
from art_core.data.trajectory import Trajectory, is_choice, message_dict, tokens_of

log = logging.getLogger("art_core")

GRACE_SECONDS = 2.0
Outcome = Trajectory | RolloutFailure


async def outcome(rollout: Awaitable[Trajectory], timeout: float | None) -> Outcome:
    """Run a rollout for `timeout` seconds at most; return its trajectory or its failure.

    A rollout that is late, or whose gathering ends, is cancelled. It may still return a trajectory.
    If it goes on for GRACE_SECONDS, it is left behind, with a warning that names it.
    """
    started, task = datetime.now(UTC), asyncio.ensure_future(rollout)
    task.add_done_callback(_retrieve)
    try:
        await asyncio.wait((task,), timeout=timeout)
    finally:
        late = not task.done()
        if late:
            await _stop(task)
    if late and (not task.done() or task.cancelled()):
        went_on = "" if task.done() else ", and goes on although it was cancelled"
        return RolloutFailure(
            reason="timeout",
            type="TimeoutError",
            message=f"the rollout took longer than {timeout:g} s{went_on}",
        )
    try:
        result = task.result()
    except BaseException as error:
        # Some are no `Exception`: those of pytest.fail, of a panic in Rust. Exceptions that end the
        # program stop the event loop first.
        return RolloutFailure.of(error)
    try:
        return _accepted(result, started)
    except Exception as error:  # an object of the user's raises when it is inspected
        return RolloutFailure.of(error, "wrong_type")


async def _stop(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait((task,), timeout=GRACE_SECONDS)
    if not task.done():
        log.warning(
            "a rollout goes on %g s after it was cancelled, and is left behind: %r; does it catch "
            "CancelledError?",
            GRACE_SECONDS,
            task,
        )


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Retrieve the exception of a task, else asyncio logs that it never was."""
    _ = task.cancelled() or task.exception()


def _accepted(result: Any, started: datetime) -> Outcome:
    if not isinstance(result, Trajectory):
        text = f"the rollout returned {type(result).__name__}, not a Trajectory"
        return RolloutFailure(reason="wrong_type", type="TypeError", message=text)
    for history in result.histories():
        for item in history.messages_and_choices:
            _ = is_choice(item) or message_dict(item)
    try:
        result.reward = float(result.reward)
    except Exception:
        result.reward = math.nan
    if not math.isfinite(result.reward):
        text = "the reward is not a finite number"
        return RolloutFailure(reason="bad_reward", type="ValueError", message=text)
    try:
        result.check_turn_rewards()
    except ConfigError as error:
        return RolloutFailure.of(error, "bad_reward")
    # A rollout may make its trajectory only when it has the answer; its time began before.
    result.start_time = min(result.start_time, started)
    _stamp_policy_versions(result)
    return result.finish()


def _stamp_policy_versions(trajectory: Trajectory) -> None:
    turns = [tokens_of(item) for item in trajectory.messages_and_choices if is_choice(item)]
    versions = [turn.policy_version for turn in turns if turn and turn.policy_version is not None]
    if versions and trajectory.initial_policy_version is None:
        trajectory.initial_policy_version = versions[0]
    if versions and trajectory.final_policy_version is None:
        trajectory.final_policy_version = versions[-1]
