"""Before the walk: what can go wrong, each with what was asked, what is known and what to do.

Arguments go to `Exception.args` and the text is made in `__str__`, so that every error pickles.
"""

from __future__ import annotations

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


def unknown(kind: str, asked: str, known: Iterable[str], *, known_as: str = "known") -> str:
    """Say that a name does not exist: what was asked, what is there (of many the most alike), the
    nearest match.
    """
    names = sorted(known)
    asked = str(asked)
    listed = ", ".join(names) or "none"
    if len(names) > _LISTED:
        alike = difflib.get_close_matches(asked, names, n=_ALIKE, cutoff=0.0)
        listed = f"{', '.join(alike)} and {len(names) - len(alike)} more"
    text = f"no {kind} {asked!r}; {known_as}: {listed}"
    near = difflib.get_close_matches(asked, names, n=1)
    return f"{text}. Did you mean {near[0]!r}?" if near else text
