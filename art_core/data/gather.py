"""Gathering: rollouts run at the same time, and a rollout that fails becomes data in its group."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import attrs

from art_core.base.errors import (
    BudgetError,
    ConfigError,
    RolloutError,
    RolloutFailure,
    message_text,
)
from art_core.base.numbers import number_or_nan
from art_core.base.progress import progress_bar
from art_core.base.threads import in_scope, widen_thread_pool
from art_core.data.account import Account, begin_gathering, charging, open_account
from art_core.data.outcome import Outcomes, outcomes, split_by_player
from art_core.data.trajectory import RolloutResult, Trajectory, TrajectoryGroup

_NOT_BEGUN = inspect.CORO_CREATED
AfterEach = Callable[[TrajectoryGroup], Awaitable["TrajectoryGroup | None"]]


async def gather_trajectory_groups(
    groups: Iterable[TrajectoryGroup | Awaitable[TrajectoryGroup]],
    *,
    pbar_desc: str | None = "gather",
    max_exceptions: int | float | None = None,
    timeout: float | None = None,
    max_concurrent: int | None = None,
    after_each: AfterEach | None = None,
) -> list[TrajectoryGroup]:
    """Run the pending rollouts of all groups concurrently and return the groups, in order.

    A rollout that returns several trajectories, in a list or by name, gives a group for each of
    them, in place of its own (see `split_by_player`). A rollout that raises, takes longer than
    `timeout` seconds, returns something else or gives a reward that is not a finite number becomes
    a `RolloutFailure` of its group. More rollouts with failures than `max_exceptions` (a count, or
    a share of all rollouts when below 1) end the gathering with a RolloutError, and so does a
    gathering in which every rollout failed; its `groups` hold what every group has until then.
    `after_each` gets each finished group, for example to judge it, and returns it, another one, or
    None to drop it; when it raises, the gathering ends with such an error too. A rollout that goes
    on after it was cancelled is left behind, with a warning. `pbar_desc=None` shows no progress
    bar. Raises ConfigError for a limit that is not a number of at least 0.

    At most `max_concurrent` rollouts run at the same time; `timeout` counts from the start of each.
    A coroutine that raises instead of returning a group gives a group with that one failure.

    Without an active metrics builder, paid calls of rollouts and of `after_each` belong to their
    group: the model that logs it, or trains on it, books them.
    """
    timeout, slots = _seconds(timeout), _slots(max_concurrent)
    widen_thread_pool()
    with in_scope(_begun(groups)) as account:
        started = await _started(groups, account)
        total = sum(len(g.pending) for g in started)
        limit, bar = _limit(max_exceptions, total), _bar(pbar_desc, total)
        tally = _Tally(total=total, limit=limit, bar=bar, slots=slots)
        finishing = (_finish_group(g, timeout, after_each, tally) for g in started)
        tasks = [asyncio.ensure_future(group) for group in finishing]
        try:
            await _all_or_first_error(tasks)
        except RolloutError as error:
            early = (tally.so_far(g, t) for g, t in zip(started, tasks, strict=True))
            error.groups = tuple(group for groups in early for group in groups)
            raise
        finally:
            if bar is not None:
                bar.close()
    finished = [group for task in tasks for group in task.result()]
    if total and tally.empty == total:
        raise _failed(f"all {total} rollouts failed; the first: {tally.first}", finished)
    return finished


async def gather_trajectories(
    trajectories: Iterable[Trajectory | Awaitable[RolloutResult]],
    *,
    pbar_desc: str | None = "gather",
    max_exceptions: int | float | None = None,
    timeout: float | None = None,
    max_concurrent: int | None = None,
) -> list[Trajectory]:
    """Run rollouts concurrently; return the trajectories of those that did not fail, in order."""
    finished = await gather_trajectory_groups(
        [TrajectoryGroup(trajectories)],
        pbar_desc=pbar_desc,
        max_exceptions=max_exceptions,
        timeout=timeout,
        max_concurrent=max_concurrent,
    )
    return [trajectory for group in finished for trajectory in group]


async def run_group(group: TrajectoryGroup) -> TrajectoryGroup:
    """Run a group's pending rollouts, without a progress bar or a limit on failures."""
    widen_thread_pool()
    tally = _Tally(total=len(group.pending), limit=math.inf, bar=None)
    finished = await _run_rollouts(_charged(group, open_account()), None, tally)
    if len(finished) > 1:
        raise ConfigError(
            f"the rollouts of an awaited group returned trajectories for {len(finished)} groups",
            "Use art.gather_trajectory_groups([group]), which returns them all.",
        )
    return finished[0]


def _begun(groups: Iterable[Any]) -> Account:
    """Begin a gathering; if it can't begin, its rollouts are ended."""
    try:
        return begin_gathering()
    except BudgetError:
        for each in groups if isinstance(groups, Sequence) else ():
            _drop_waiting(each.pending if isinstance(each, TrajectoryGroup) else [each])
        raise


def _charged(group: TrajectoryGroup, account: Account) -> TrajectoryGroup:
    """Return a copy of a group whose paid calls belong to an account, unless it has one."""
    return copy.copy(group).paid_by(group.account or account)


@attrs.define
class _Tally:
    total: int
    limit: float
    bar: Any
    slots: AbstractAsyncContextManager[Any] = attrs.field(factory=nullcontext)
    failed: int = 0
    empty: int = 0
    first: RolloutFailure | None = None
    rewarded: int = 0
    reward_sum: float = 0.0
    outcomes: dict[int, list[Outcomes]] = attrs.field(factory=dict)

    def so_far(
        self, group: TrajectoryGroup, task: asyncio.Future[list[TrajectoryGroup]]
    ) -> list[TrajectoryGroup]:
        """Return a group with what it had when the gathering ended early."""
        if not task.cancelled() and task.exception() is None:
            return task.result()
        return split_by_player(group, self.outcomes.get(group.id, ()))

    def count(self, group: TrajectoryGroup, result: Outcomes) -> None:
        """Count a rollout and show it; raises RolloutError once too many have failures."""
        self.outcomes.setdefault(group.id, []).append(result)
        failures = [each for each in result.values() if isinstance(each, RolloutFailure)]
        self.failed += bool(failures)
        self.empty += len(failures) == len(result)
        self.first = self.first or next(iter(failures), None)
        rewards = [t.total_reward for t in result.values() if isinstance(t, Trajectory)]
        self.rewarded, self.reward_sum = (
            self.rewarded + len(rewards),
            self.reward_sum + sum(rewards),
        )
        if self.bar is not None:
            self._show()
        if self.failed > self.limit:
            raise RolloutError(
                f"{self.failed} of {self.total} rollouts failed, more than max_exceptions allows; "
                f"the first: {self.first}",
                "Mend the rollout, or raise max_exceptions.",
            )

    def _show(self) -> None:
        self.bar.update(1)
        if self.rewarded:
            reward = f"{self.reward_sum / self.rewarded:.3f}"
            self.bar.set_postfix(reward=reward, failed=self.failed, refresh=False)


def _limit(max_exceptions: int | float | None, total: int) -> float:
    if max_exceptions is None:
        return math.inf
    limit = number_or_nan(max_exceptions)
    if not limit >= 0:
        raise ConfigError(
            f"max_exceptions must be a count or a share below 1, got {max_exceptions!r}"
        )
    return limit if limit >= 1 else limit * total


def _seconds(timeout: float | None) -> float | None:
    seconds = None if timeout is None else number_or_nan(timeout)
    if seconds is not None and not seconds >= 0:
        raise ConfigError(
            f"timeout must be a number of seconds of at least 0, or None, got {timeout!r:.80}"
        )
    return seconds


def _slots(max_concurrent: int | None) -> AbstractAsyncContextManager[Any]:
    """Return the semaphore that a rollout enters before it begins."""
    if max_concurrent is None:
        return nullcontext()
    fits = isinstance(max_concurrent, int) and not isinstance(max_concurrent, bool)
    if not fits or max_concurrent < 1:
        raise ConfigError(
            f"max_concurrent must be a whole number of at least 1, or None, got {max_concurrent!r}"
        )
    return asyncio.Semaphore(max_concurrent)


def _bar(desc: str | None, total: int) -> Any:
    if desc is None:
        return None
    return progress_bar(desc=desc, total=total, unit="rollout", dynamic_ncols=True)


def _failed(problem: str, groups: Sequence[TrajectoryGroup]) -> RolloutError:
    error = RolloutError(problem, "The failures, with tracebacks, are in the groups of this error.")
    error.groups = tuple(groups)
    return error


async def _started(
    groups: Iterable[TrajectoryGroup | Awaitable[TrajectoryGroup]], account: Account
) -> list[TrajectoryGroup]:
    tasks = [asyncio.ensure_future(_made(item, account)) for item in groups]
    await _all_or_first_error(tasks)
    return [task.result() for task in tasks]


async def _made(
    item: TrajectoryGroup | Awaitable[TrajectoryGroup], above: Account
) -> TrajectoryGroup:
    group: Any = item
    if isinstance(item, Awaitable) and not isinstance(item, TrajectoryGroup):
        above = Account(above, gathering=True)
        with charging(above):
            group = await _group_or_failure(item)
    if not isinstance(group, TrajectoryGroup):
        raise ConfigError(
            f"gather_trajectory_groups takes trajectory groups, not {type(group).__name__}",
            "Give art.TrajectoryGroup(rollout(...) for ...), or coroutines that return one.",
        )
    return _charged(group, Account(above))


async def _group_or_failure(making: Awaitable[TrajectoryGroup]) -> TrajectoryGroup:
    try:
        return await making
    except BaseException as error:
        if _ends_the_gathering(error):
            raise
        return TrajectoryGroup([_failing(error)])


async def _failing(error: BaseException) -> Trajectory:
    raise error


def _ends_the_gathering(error: BaseException) -> bool:
    """Return whether an exception ends the program or the run, or cancels the gathering."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    of_run = isinstance(error, BudgetError) and error.scope == "run"
    return of_run or isinstance(error, KeyboardInterrupt | SystemExit)


async def _all_or_first_error(tasks: Sequence[asyncio.Future[Any]]) -> None:
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _finish_group(
    group: TrajectoryGroup, timeout: float | None, after_each: AfterEach | None, tally: _Tally
) -> list[TrajectoryGroup]:
    finished = await _run_rollouts(group, timeout, tally)
    if after_each is None:
        return finished
    kept = [await judged(each, after_each) for each in finished]
    return [each for each in kept if each is not None]


async def judged(group: TrajectoryGroup, after_each: AfterEach) -> TrajectoryGroup | None:
    """Return what `after_each` makes of a group, which pays for it. RolloutError if it fails."""
    account = group.charge_to(open_account())
    try:
        with charging(account):
            made: Any = await after_each(group)
        if made is not None and not isinstance(made, TrajectoryGroup):
            raise TypeError(f"it returned {type(made).__name__}, not a TrajectoryGroup or None")
    except BaseException as error:
        if _ends_the_gathering(error):
            raise
        raise RolloutError(
            f"after_each failed ({type(error).__name__}: {message_text(error)})",
            "Mend it; the groups of this error hold every rollout that was finished.",
        ) from error
    return None if made is None else made.paid_by(account)


async def _run_rollouts(
    group: TrajectoryGroup, timeout: float | None, tally: _Tally
) -> list[TrajectoryGroup]:
    async def one(rollout: Awaitable[RolloutResult]) -> Outcomes:
        async with tally.slots:
            result = await outcomes(rollout, timeout)
        tally.count(group, result)
        return result

    assert group.account is not None
    with charging(group.account):
        tasks = [asyncio.ensure_future(one(rollout)) for rollout in group.pending]
    try:
        await _all_or_first_error(tasks)
    finally:
        _drop_waiting(group.pending)
    return split_by_player(group, [task.result() for task in tasks])


def _drop_waiting(rollouts: Iterable[Any]) -> None:
    """End rollouts that were waiting for others when the gathering ended."""
    for rollout in rollouts:
        if isinstance(rollout, asyncio.Future):
            rollout.cancel()
        elif inspect.iscoroutine(rollout) and inspect.getcoroutinestate(rollout) == _NOT_BEGUN:
            rollout.close()  # else Python warns that it was never awaited
