"""Before the walk: what can go wrong, each with what was asked, what is known and what to do.

Arguments go to `Exception.args` and the text is made in `__str__`, so that every error pickles.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterable


class ArtError(Exception):
    """Base of all errors of art-core and its plugins: a problem and, where known, a remedy."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)

    def __str__(self) -> str:
        problem, remedy = map(str, self.args)
        stop = "" if problem.endswith((".", "?", "!")) else "."
        return f"{problem}{stop} {remedy}" if remedy else problem


class ConfigError(ArtError, ValueError):
    """A name, an option or a value that does not exist or does not fit."""


class PluginError(ArtError):
    """A plugin that could not be loaded, or whose hook failed."""


class MetricError(ArtError, ValueError):
    """A metric key or value that the taxonomy does not accept."""


class PricingError(ArtError, LookupError):
    """A cost that cannot be computed because a price is missing."""


class RolloutError(ArtError, RuntimeError):
    """Too many rollouts failed; the groups gathered so far are in `groups`."""

    groups: tuple[object, ...] = ()


class BackendError(ArtError, RuntimeError):
    """A backend that could not do what it was asked."""


class EngineError(BackendError):
    """An inference engine that is closed, dead or too late; the message says which and why."""


class HistoryError(ArtError, RuntimeError):
    """The run's log could not be opened, read or written."""


class SinkError(ArtError, RuntimeError):
    """A sink that could not be made or did not take its rows."""


_LISTED, _ALIKE = 40, 8
_COMPARED, _COMPARABLE = 1000, 200
"""Names that are compared with what was asked, and the most characters that it has: the search
takes time in proportion to both."""


def unknown(kind: str, asked: str, known: Iterable[str], *, known_as: str = "known") -> str:
    """Say that a name does not exist: what was asked, what is there (of many the most alike), the
    nearest match.
    """
    names = sorted(known)
    asked = str(asked)
    listed = ", ".join(names) or "none"
    if len(names) > _LISTED:
        some = difflib.get_close_matches(
            asked[:_COMPARABLE], _around(asked, names), n=_ALIKE, cutoff=0.0
        )
        listed = f"{', '.join(some)} and {len(names) - len(some)} more"
    return f"no {kind} {_short(asked)!r}; {known_as}: {listed}{did_you_mean(asked, names, '.')}"


def did_you_mean(asked: str, known: Iterable[str], before: str = "") -> str:
    """Return " Did you mean 'name'?", after some text, with the nearest name; "" without one."""
    if len(asked) > _COMPARABLE:
        return ""
    near = difflib.get_close_matches(asked, _around(asked, sorted(known)), n=1)
    return f"{before} Did you mean {near[0]!r}?" if near else ""


def _around(asked: str, names: list[str]) -> list[str]:
    """Return the names that are compared: of very many those that begin most alike."""
    middle = bisect.bisect(names, asked)
    first = max(0, min(middle - _COMPARED // 2, len(names) - _COMPARED))
    return names[first : first + _COMPARED]


def _short(asked: str) -> str:
    return asked if len(asked) <= _COMPARABLE else f"{asked[: _COMPARABLE - 1]}…"
