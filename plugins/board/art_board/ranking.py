"""The lists of runs: filtered, in order, page by page; as a matrix and as CSV."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from art_board.library import Listed
from art_core import ConfigError
from art_core.reports import board
from art_core.reports.board import Place

ENDED = ("finished", "interrupted", "out of budget")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"(?P<key>[^<>=!]+)(?P<op><=|>=|!=|<|>|=)(?P<value>[^<>=!]+)")
_FACTS = ("run", "project", "model", "status", "started", "ended")
MAX_ROWS = 500


@attrs.frozen(kw_only=True)
class Query:
    """Which runs, in which order. `status` is one of the statuses, "ended" or "all"; `filters` are
    words of a run's name and conditions such as `reward/mean>0.5`.
    """

    status: str = "all"
    filters: str = ""
    sort: str = ""
    reverse: bool = False
    columns: tuple[str, ...] = ()
    offset: int = 0
    limit: int = 100


def chosen(entries: Iterable[Listed], query: Query, taxonomy: Any) -> list[Listed]:
    """Return the runs that a query asks for, in its order; the better values come first."""
    found = [e for e in entries if query.status in ("all", e.status) or _ended(e, query.status)]
    every = _places(found)
    for term in query.filters.split():
        found = list(filter(_filter(term, every, taxonomy), found))
    return _in_order(found, query, every, taxonomy)


def _ended(entry: Listed, status: str) -> bool:
    return status == "ended" and entry.status in ENDED


def _places(entries: Iterable[Listed]) -> list[Place]:
    return [entry.place for entry in entries if entry.place is not None]


def _filter(term: str, places: list[Place], taxonomy: Any) -> Callable[[Listed], bool]:
    condition = _CONDITION.fullmatch(term)
    if condition is None:
        return lambda entry: term.lower() in entry.run.name.lower()
    compare = _COMPARE[condition["op"]]
    if condition["key"] in _FACTS:
        return lambda e: (
            e.place is not None and compare(e.place.facts[condition["key"]], condition["value"])
        )
    name = board.column(condition["key"], places, taxonomy)
    try:
        value = float(condition["value"])
    except ValueError:
        raise ConfigError(f"{term!r} compares with {condition['value']!r}, no number") from None
    return lambda e: e.place is not None and compare(e.place.values.get(name, math.nan), value)


def _in_order(
    entries: list[Listed], query: Query, places: list[Place], taxonomy: Any
) -> list[Listed]:
    if not query.sort:
        return entries
    if query.sort in _FACTS:
        return sorted(entries, key=lambda e: _fact(e, query.sort), reverse=query.reverse)
    name = board.column(query.sort, places, taxonomy)
    by_place = {id(entry.place): entry for entry in entries}
    ranked = board.best_first(_places(entries), name, taxonomy)
    known = [p for p in ranked if not math.isnan(p.values.get(name, math.nan))]
    missing = ranked[len(known) :]  # they come last
    unread = [entry for entry in entries if entry.place is None]
    ordered = [*(known[::-1] if query.reverse else known), *missing]
    return [*(by_place[id(place)] for place in ordered), *unread]


def _fact(entry: Listed, name: str) -> str:
    if name == "status":
        return entry.status
    return entry.run.name if entry.place is None else entry.place.facts[name]


def page(entries: Iterable[Listed], query: Query, taxonomy: Any) -> dict[str, Any]:
    """Return a page of runs with the values of the columns that were asked for, the union of all
    columns, the direction of each, and the number of runs of each status.
    """
    entries = list(entries)
    found = chosen(entries, query, taxonomy)
    every = _places(entries)
    union = board.columns(every)
    asked = [name for name in query.columns if name in union]
    end = query.offset + max(1, min(query.limit, MAX_ROWS))
    return {
        "total": len(found),
        "offset": query.offset,
        "rows": [_row(entry, asked) for entry in found[query.offset : end]],
        "columns": union,
        "directions": {name: _direction(name, taxonomy) for name in union},
        "statuses": dict(Counter(entry.status for entry in entries)),
        "sort": board.column(query.sort, every, taxonomy) if _is_column(query.sort) else query.sort,
    }


def _is_column(name: str) -> bool:
    return bool(name) and name not in _FACTS


def _direction(name: str, taxonomy: Any) -> str | None:
    found: str | None = taxonomy.direction(name.removesuffix(board.BEST))
    return found


def _row(entry: Listed, columns: Iterable[str]) -> dict[str, Any]:
    place = entry.place
    return {
        "id": entry.id,
        "run": entry.run.name,
        "status": entry.status,
        "problem": entry.problem,
        "started": place.facts["started"] if place else "",
        "ended": place.facts["ended"] if place else "",
        "values": {n: place.values[n] for n in columns if n in place.values} if place else {},
    }


def matrix(entries: Iterable[Listed], name: str, query: Query, taxonomy: Any) -> dict[str, Any]:
    """Return a table of models by projects of a column."""
    places = _places(chosen(entries, query, taxonomy))
    key = board.column(name, places, taxonomy)
    cells = board.matrix(places, key, taxonomy)
    projects = sorted({project for row in cells.values() for project in row})
    return {
        "key": key,
        "projects": projects,
        "models": cells,
        "direction": _direction(key, taxonomy),
    }


def csv(entries: Iterable[Listed], query: Query, taxonomy: Any, *, is_long: bool) -> str:
    """Return the runs as CSV with every column at full precision, one line per run, or per run and
    key.
    """
    places = _places(chosen(entries, query, taxonomy))
    return "\n".join((board.long if is_long else board.wide)(places)) + "\n"
