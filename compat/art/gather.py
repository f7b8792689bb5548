"""Gathering with ART's rules: by default the first failure ends it, with its own exception."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs

import art_core
from art.trajectories import TrajectoryGroup

AfterEach = Callable[[TrajectoryGroup], Awaitable[Any]]


@attrs.define
class Raised:
    """The exceptions of rollouts, in the order in which they came."""

    limit: float
    errors: list[BaseException] = attrs.field(factory=list)
    waiting: list[Any] = attrs.field(factory=list)

    async def kept(self, rollout: Awaitable[Any]) -> Any:
        """Await a rollout, and keep its exception."""
        try:
            return await rollout
        except BaseException as error:
            self.errors.append(error)
            raise

    def keeping(self, rollout: Awaitable[Any]) -> Awaitable[Any]:
        """Return a coroutine that keeps a rollout's exception."""
        self.waiting.append(rollout)
        return self.kept(rollout)

    def close(self) -> None:
        """Close coroutines that never began, else Python warns about them."""
        for rollout in self.waiting:
            if inspect.iscoroutine(rollout) and (
                inspect.getcoroutinestate(rollout) == inspect.CORO_CREATED
            ):
                rollout.close()

    def groups_of(self, error: art_core.RolloutError) -> list[Any]:
        """Return the groups of a gathering that ended early, if so many may fail; else raise the
        exception of the rollout.
        """
        allowed = self.limit if self.limit >= 1 else self.limit * len(self.waiting)
        if not self.errors:
            raise error
        if len(self.errors) > allowed:
            raise self.errors[-1] from None
        return list(error.groups)


async def gather_trajectory_groups(
    groups: Iterable[Any],
    *,
    pbar_desc: str | None = "gather",
    pbar_total_completion_tokens: bool = False,
    max_exceptions: int | float = 0,
    max_metrics: int | None = None,
    after_each: AfterEach | None = None,
) -> list[TrajectoryGroup]:
    """Run the rollouts of all groups at the same time, and return the groups.

    More exceptions than `max_exceptions` (a count, or a share below 1) end the gathering: the
    exception is raised. `after_each` returns a group, several in a list, or None.
    """
    raised, further = Raised(max_exceptions), Further(after_each)
    try:
        gathered = await art_core.gather_trajectory_groups(
            [_watched(group, raised) for group in groups],
            pbar_desc=pbar_desc,
            max_exceptions=max_exceptions,
            after_each=None if after_each is None else further.first,
        )
    except art_core.RolloutError as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None  # of after_each
        gathered = raised.groups_of(error)
    finally:
        raised.close()
    return [each for group in gathered for each in further.all_of(TrajectoryGroup.of(group))]


def _watched(group: Any, raised: Raised) -> Any:
    """Return a group whose rollouts keep their exceptions, or such a coroutine of a group."""
    if not isinstance(group, art_core.TrajectoryGroup):
        return raised.keeping(group)
    watched = TrajectoryGroup.of(group)
    watched.set_values(pending=tuple(map(raised.keeping, group.pending)))
    return watched


@attrs.define
class Further:
    """What `after_each` returns beyond one group."""

    after_each: AfterEach | None
    beyond: dict[int, list[TrajectoryGroup]] = attrs.field(factory=dict)

    async def first(self, group: art_core.TrajectoryGroup) -> Any:
        """Call `after_each`, keep all but the first group that it returns, and return that."""
        assert self.after_each is not None
        result = await self.after_each(TrajectoryGroup.of(group))
        if not isinstance(result, list):
            return result
        if result:
            self.beyond[result[0].id] = result[1:]
        return result[0] if result else None

    def all_of(self, group: TrajectoryGroup) -> list[TrajectoryGroup]:
        """Return a group, and those that were kept with it."""
        return [group, *self.beyond.get(group.id, ())]


async def gather_trajectories(
    trajectories: Iterable[Awaitable[Any]],
    *,
    pbar_desc: str | None = "gather",
    pbar_total_completion_tokens: bool = False,
    max_exceptions: int | float = 0,
) -> list[Any]:
    """Run rollouts at the same time; return what they returned, in order.

    In place of a rollout that failed, its exception is in the list, unless there are more of them
    than `max_exceptions`: then it is raised.
    """
    raised = Raised(max_exceptions)
    results: dict[int, Any] = {}

    async def one(place: int, rollout: Awaitable[Any]) -> Any:
        try:
            results[place] = await rollout
        except BaseException as error:
            results[place] = error
            raise
        return results[place]

    rollouts = [raised.keeping(one(n, rollout)) for n, rollout in enumerate(trajectories)]
    try:
        await art_core.gather_trajectories(
            rollouts, pbar_desc=pbar_desc, max_exceptions=max_exceptions
        )
    except art_core.RolloutError as error:
        raised.groups_of(error)
    finally:
        raised.close()
    return [results[place] for place in range(len(rollouts))]
