"""The outcome of a rollout: checked trajectories, or failures; the groups that come of them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from art_core.base.errors import BudgetError, ConfigError, RolloutFailure
from art_core.base.spending import counting_dollars
from art_core.data.trajectory import (
    RolloutResult,
    Trajectory,
    TrajectoryGroup,
    is_choice,
    message_dict,
    tokens_of,
)

log = logging.getLogger("art_core")

GRACE_SECONDS = 2.0
Outcome = Trajectory | RolloutFailure
Outcomes = dict[str | None, Outcome]
"""What a rollout gave: one outcome under None, or one for each of its players."""


async def outcome(rollout: Awaitable[Any], timeout: float | None) -> Outcome:
    """Run a rollout that returns one trajectory, as `outcomes` does."""
    result, started = await _result(rollout, timeout)
    return result if isinstance(result, RolloutFailure) else checked(result, started)


async def outcomes(rollout: Awaitable[RolloutResult], timeout: float | None) -> Outcomes:
    """Run a rollout for `timeout` seconds at most; return its trajectories or its failures.

    A rollout that is late, or whose gathering ends, is cancelled. It may still return a trajectory.
    If it goes on for GRACE_SECONDS, it is left behind, with a warning that names it.
    """
    result, started = await _result(rollout, timeout)
    if isinstance(result, RolloutFailure):
        return {None: result}
    if not isinstance(result, Mapping | list | tuple):
        return {None: checked(result, started)}
    named = result.items() if isinstance(result, Mapping) else enumerate(result)
    found: Outcomes = {}
    seen: set[int] = set()
    for name, each in named:
        twice = id(each) in seen
        seen.add(id(each))
        found[str(name)] = _wrong("one trajectory twice") if twice else checked(each, started)
    return found or {None: _wrong("no trajectory")}


async def _result(rollout: Awaitable[Any], timeout: float | None) -> tuple[Any, datetime]:
    """Return what a rollout returned, or its failure, and when it began."""
    started = datetime.now(UTC)
    with counting_dollars() as spending:
        task = asyncio.ensure_future(rollout)
    task.add_done_callback(_retrieve)
    try:
        await asyncio.wait((task,), timeout=timeout)
    finally:
        late = not task.done()
        if late:
            await _stop(task)
    if late and (not task.done() or task.cancelled()):
        went_on = "" if task.done() else ", and goes on although it was cancelled"
        late_failure = RolloutFailure(
            reason="timeout",
            type="TimeoutError",
            message=f"the rollout took longer than {timeout:g} s{went_on}",
        )
        return late_failure, started
    if spending.exceeded is not None:
        _raise_of_run(spending.exceeded)
        return RolloutFailure.of(spending.exceeded), started
    try:
        result = task.result()
        if spending.usd and isinstance(result, Trajectory):
            result.metadata.setdefault("usd", spending.usd)
        return result, started
    except BaseException as error:
        # Some are no `Exception`: those of pytest.fail, of a panic in Rust. Exceptions that end the
        # program stop the event loop first.
        _raise_of_run(error)
        return RolloutFailure.of(error), started


def _raise_of_run(error: BaseException) -> None:
    """Raise the error of a run whose budget is spent: no attempt can go on."""
    if isinstance(error, BudgetError) and error.scope == "run":
        raise error


def checked(result: Any, started: datetime) -> Outcome:
    """Return the trajectory of a rollout that began at `started`, or the failure that it is."""
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
        return _wrong(f"{type(result).__name__}, not a Trajectory")
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


def _wrong(what: str) -> RolloutFailure:
    text = f"the rollout returned {what}"
    return RolloutFailure(reason="wrong_type", type="TypeError", message=text)


def _stamp_policy_versions(trajectory: Trajectory) -> None:
    turns = [tokens_of(item) for item in trajectory.messages_and_choices if is_choice(item)]
    versions = [turn.policy_version for turn in turns if turn and turn.policy_version is not None]
    if versions and trajectory.initial_policy_version is None:
        trajectory.initial_policy_version = versions[0]
    if versions and trajectory.final_policy_version is None:
        trajectory.final_policy_version = versions[-1]


def split_by_player(group: TrajectoryGroup, results: Sequence[Outcomes]) -> list[TrajectoryGroup]:
    """Return the group with what its rollouts gave in place of those that were pending.

    If rollouts gave several trajectories, there is a group for each player, with the player's name
    or place as `metadata["player"]`, and one for trajectories without a player, if there are any. A
    rollout that failed as a whole is a failure of each of them. Metrics and logs of the group go to
    the first, and all have its account, so that everything is counted once.
    """
    whole = [result[None] for result in results if None in result]
    rest = group.with_results(
        [each for each in whole if isinstance(each, Trajectory)],
        [each for each in whole if isinstance(each, RolloutFailure)],
    )
    players = list(dict.fromkeys(name for result in results for name in result if name is not None))
    if not players:
        return [rest]
    made = [rest] if rest.trajectories else []
    for name in players:
        player = TrajectoryGroup(
            [result[name] for result in results if name in result],
            exceptions=rest.failures,
            metadata={**group.metadata, "player": name},
            metrics={} if made else group.metrics,
            logs=() if made else group.logs,
        )
        made.append(player if group.account is None else player.paid_by(group.account))
    return made
