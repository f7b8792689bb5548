"""Formats that several commands use: dollars, counts, changes in per cent, cost trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from art_core.budgets.tally import read_tally
from art_core.hooks.commands import Column, Record
from art_core.log.rundir import budget_file

SHARE = Column(key="share", form=".0%", right=True)


def usd_column(key: str, heading: str) -> Column:
    """Return a column of US dollars, shown to a millionth."""
    return Column(key=key, heading=heading, form=".6f", right=True)


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,.0f} {noun}" + ("" if number == 1 else "s")


def sized(count: float) -> str:
    """Return a number of bytes in the unit that fits."""
    units = ["TB", "GB", "MB", "kB"]
    unit = ""
    while count >= 1000 and units:
        count, unit = count / 1000, units.pop()
    return f"{count:,.3g} {unit}" if unit else counted(count, "byte")


def signed_percent(change: float) -> str:
    """Format a change in per cent with its sign, and 0.0% without one."""
    text = format(change, "+.1%")
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def budget_line(run_dir: Path) -> Record:
    """Return one line about the budget of a run, empty for a run without one."""
    tally = read_tally(budget_file(run_dir))
    if tally is None or tally.limit is None:
        return Record({}, [])
    values = {"spent": tally.spent, "reserved": max(0.0, tally.reserved), "limit": tally.limit}
    usd = {name: f"${value:,.4f}" for name, value in values.items()}
    text = f"budget  {usd['spent']} spent, {usd['reserved']} reserved, of {usd['limit']}"
    return Record({"budget": values}, [text])


def branches(costs: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield (path, the tree's lines before its name) of cost paths, the dearest branch first."""
    children: dict[str, list[str]] = {}
    for path in sorted(filter(None, costs), key=lambda path: (-costs[path], path)):
        children.setdefault(path.rpartition("/")[0], []).append(path)
    # Not recursive: a cost's path may be as deep as its name is long.
    waiting = [(path, "") for path in reversed(children.get("", []))]
    while waiting:
        path, indent = waiting.pop()
        is_last = path == children[path.rpartition("/")[0]][-1]
        yield path, indent + ("└─ " if is_last else "├─ ")
        below = indent + ("   " if is_last else "│  ")
        waiting += [(child, below) for child in reversed(children.get(path, []))]


def problem_lines(problems: Mapping[str, str]) -> Iterator[str]:
    """Yield one line per run that can't be read, or only in part: {name: reason}."""
    for name, reason in problems.items():
        yield f"{name}: {reason}"
