"""The lines of a budget's file, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from orjson import JSONDecodeError, loads

from art_core.base.errors import BudgetError
from art_core.budgets.estimate import Costs


@attrs.define
class OpenReservation:
    """Dollars that are reserved. What is reserved `within` it is `drawn` from it.

    `run`, `attempt` and `seq` are those of the run that reserved it, and of its last row then.
    """

    kind: str
    usd: float
    within: str | None = None
    run: str = ""
    attempt: int = 0
    seq: int = 0
    drawn: float = 0.0

    @property
    def rest(self) -> float:
        """The dollars that nothing within has drawn."""
        return max(0.0, self.usd - self.drawn)


@attrs.frozen
class RunTotals:
    """What the log of a run shows up to the row `seq`: its `logged` dollars, of which the
    `covered` ones were settled in the file before.
    """

    seq: int = 0
    logged: float = 0.0
    covered: float = 0.0


@attrs.define
class Tally:
    """What the lines until now add up to.

    `settled` dollars were paid by calls. `runs` have what their logs show. `open` reservations are
    counted as `reserved`, also if their process is gone. `costs` are those of each kind.
    """

    settled: float = 0.0
    reserved: float = 0.0
    limit: float | None = None
    warned: float | None = None
    open: dict[str, OpenReservation] = attrs.field(factory=dict)
    runs: dict[str, RunTotals] = attrs.field(factory=dict)
    costs: dict[str, Costs] = attrs.field(factory=dict)
    _logged: float = 0.0

    @property
    def spent(self) -> float:
        """Dollars that were spent for sure."""
        return max(0.0, self.settled + self._logged)

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        if "reserve" in entry:
            self._reserve(entry)
        elif "settle" in entry:
            self._settle(entry["settle"], entry["usd"])
        elif "run" in entry:
            self._log(entry)
        self.limit = entry.get("limit", self.limit)
        self.warned = entry.get("warned", self.warned)

    def _reserve(self, entry: Mapping[str, Any]) -> None:
        usd, within = entry["usd"], entry.get("in")
        self.open[entry["reserve"]] = OpenReservation(
            entry["kind"],
            usd,
            within,
            entry.get("run", ""),
            entry.get("attempt", 0),
            entry.get("seq", 0),
        )
        self.reserved += usd
        self._draw(within, usd)

    def _settle(self, key: str, usd: float) -> None:
        found = self._close(key)
        if found is None:
            return  # settled before: it counts once
        self.settled += usd
        self._draw(found.within, usd - found.usd)
        if usd > 0:  # calls that failed are free, and show nothing of the next
            self.costs.setdefault(found.kind, Costs()).add(usd)

    def _close(self, key: str) -> OpenReservation | None:
        found = self.open.pop(key, None)
        if found is not None:
            self.reserved = self.reserved - found.rest if self.open else 0.0
        return found

    def _draw(self, within: str | None, usd: float) -> None:
        around = self.open.get(within) if within is not None else None
        if around is not None:
            before = around.rest
            around.drawn += usd
            self.reserved += around.rest - before

    def _log(self, entry: Mapping[str, Any]) -> None:
        before = self.runs.get(entry["run"], RunTotals())
        for key in entry["settles"]:
            self._close(key)
        if entry["seq"] >= before.seq:
            after = RunTotals(entry["seq"], entry["logged"], entry["covered"])
            self.runs[entry["run"]] = after
            self._logged += (after.logged - after.covered) - (before.logged - before.covered)


def entries_of(data: bytes, place: str) -> list[dict[str, Any]]:
    """Return the lines of a budget's file as values; BudgetError for one that can't be read."""
    found = []
    for line in data.splitlines():
        try:
            entry = loads(line)
            if not isinstance(entry, dict):
                raise TypeError("it is no object")
        except (JSONDecodeError, TypeError) as error:
            raise BudgetError(
                f"the budget's file {place} has a line that can't be read: {line[:80]!r} ({error})",
                "Mend the line, or begin another file.",
            ) from error
        found.append(entry)
    return found


def read_tally(path: Path) -> Tally | None:
    """Return what a budget's file adds up to, to show it; None if there is none, or if it can't be
    read.
    """
    try:
        data = path.read_bytes()
        tally = Tally()
        for entry in entries_of(data[: data.rfind(b"\n") + 1], str(path)):
            tally.apply(entry)
    except (OSError, BudgetError, LookupError, TypeError):
        return None
    return tally
