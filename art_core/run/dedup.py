"""What a run has seen already: groups, so that logging them twice counts them once, and the ids of
scenarios.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from art_core.data.trajectory import TrajectoryGroup
from art_core.log.history import scenario_ids_of

_REMEMBERED_GROUPS = 10_000


@attrs.frozen
class GroupsToCount:
    """Which groups of a row are counted: `new` in no row before, `again` in a step before and now
    trained once more; `trained` are all that the row's step trained.
    """

    new: Sequence[TrajectoryGroup] = ()
    again: Sequence[TrajectoryGroup] = ()
    trained: Sequence[TrajectoryGroup] = ()


@attrs.define
class Seen:
    """Knows the newest groups, and all scenario ids: these are read from the log when the first new
    one comes. `some_scenarios` says that the log has any.
    """

    history: Path
    some_scenarios: bool
    _scenarios: set[str] | None = None
    _groups: set[tuple[str, int]] = attrs.field(factory=set)
    _trained: set[tuple[str, int]] = attrs.field(factory=set)
    _order: deque[tuple[str, int]] = attrs.field(factory=deque)

    def to_count(
        self, split: str, groups: Sequence[TrajectoryGroup], *, trained: bool
    ) -> GroupsToCount:
        """Return which groups a row counts; `trained` if the row is of a step that trained them."""
        return GroupsToCount(
            new=[group for group in groups if (split, group.id) not in self._groups],
            again=[group for group in groups if trained and (split, group.id) in self._trained],
            trained=groups if trained else (),
        )

    def new_scenarios(self, ids: frozenset[str]) -> list[str]:
        """Return the ids that no row has had, sorted."""
        if self._scenarios is None:
            self._scenarios = scenario_ids_of(self.history) if self.some_scenarios else set()
        return sorted(ids - self._scenarios)

    def remember(self, split: str, groups: GroupsToCount, scenarios: Iterable[str]) -> None:
        """Keep what a row that was written had counted, and which groups its step trained."""
        if self._scenarios is not None:
            self._scenarios.update(scenarios)
        for group in groups.new:
            self._groups.add((split, group.id))
            self._order.append((split, group.id))
        self._trained.update((split, group.id) for group in groups.trained)
        while len(self._order) > _REMEMBERED_GROUPS:
            forgotten = self._order.popleft()
            self._groups.discard(forgotten)
            self._trained.discard(forgotten)
