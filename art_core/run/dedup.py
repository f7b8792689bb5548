"""Groups and scenario ids that a run has counted: logging them twice counts them once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from art_core.data.trajectory import TrajectoryGroup
from art_core.log.history import scenario_ids_of

_MAX_GROUPS = 10_000


@attrs.frozen
class GroupsOfRow:
    """The groups of a row; `trained` when the row's step trained them.

    `new` are in no earlier row. `again` are in the row of an earlier step, and trained once more.
    """

    all: Sequence[TrajectoryGroup] = ()
    new: Sequence[TrajectoryGroup] = ()
    again: Sequence[TrajectoryGroup] = ()
    trained: bool = False


NO_GROUPS = GroupsOfRow()


@attrs.define
class Dedup:
    """The newest groups and all scenario ids of a run. Ids are read from the log when the first new
    one comes, if the log `has_scenarios`.
    """

    history: Path
    has_scenarios: bool
    _scenarios: set[str] | None = None
    _groups: set[tuple[str, int]] = attrs.field(factory=set)
    _trained: set[tuple[str, int]] = attrs.field(factory=set)
    _order: deque[tuple[str, int]] = attrs.field(factory=deque)

    def of_row(
        self, split: str, groups: Sequence[TrajectoryGroup], *, trained: bool
    ) -> GroupsOfRow:
        """Return which groups of a row were counted before."""
        return GroupsOfRow(
            all=groups,
            new=[group for group in groups if (split, group.id) not in self._groups],
            again=[group for group in groups if trained and (split, group.id) in self._trained],
            trained=trained,
        )

    def new_scenarios(self, ids: frozenset[str]) -> list[str]:
        """Return the ids that are in no row, sorted."""
        if self._scenarios is None:
            self._scenarios = scenario_ids_of(self.history) if self.has_scenarios else set()
        return sorted(ids - self._scenarios)

    def commit(self, split: str, groups: GroupsOfRow, scenarios: Iterable[str]) -> None:
        """Remember the groups and new scenarios of a row that was written."""
        if self._scenarios is not None:
            self._scenarios.update(scenarios)
        for group in groups.new:
            self._groups.add((split, group.id))
            self._order.append((split, group.id))
        if groups.trained:
            self._trained.update((split, group.id) for group in groups.all)
        while len(self._order) > _MAX_GROUPS:
            oldest = self._order.popleft()
            self._groups.discard(oldest)
            self._trained.discard(oldest)
