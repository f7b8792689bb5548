"""What a run has seen already: groups, so that logging them twice counts them once, and the ids of
scenarios.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from art_core.data.trajectory import TrajectoryGroup
from art_core.metrics.history import scenario_ids_of

_REMEMBERED_GROUPS = 10_000


@attrs.define
class Seen:
    """Knows the newest groups, and all scenario ids: these are read from the log when the first new
    one comes. `some_scenarios` says that the log has any.
    """

    history: Path
    some_scenarios: bool
    _scenarios: set[str] | None = None
    _groups: set[tuple[str, int]] = attrs.field(factory=set)
    _order: deque[tuple[str, int]] = attrs.field(factory=deque)

    def new_groups(self, split: str, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """Return the groups that no row of the split has counted."""
        return [group for group in groups if (split, group.id) not in self._groups]

    def new_scenarios(self, ids: frozenset[str]) -> list[str]:
        """Return the ids that no row has had, sorted."""
        if self._scenarios is None:
            self._scenarios = scenario_ids_of(self.history) if self.some_scenarios else set()
        return sorted(ids - self._scenarios)

    def remember(
        self, split: str, groups: Iterable[TrajectoryGroup], scenarios: Iterable[str]
    ) -> None:
        """Keep what a row that was written had counted."""
        if self._scenarios is not None:
            self._scenarios.update(scenarios)
        for group in groups:
            self._groups.add((split, group.id))
            self._order.append((split, group.id))
        while len(self._order) > _REMEMBERED_GROUPS:
            self._groups.discard(self._order.popleft())
