"""Errors, each with what was asked, what is known and what to do; and text without secrets.

Arguments go to `Exception.args` and the text is made in `__str__`, so that every error pickles.
"""

from __future__ import annotations

import bisect
import difflib
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs


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


class RewardError(ArtError, RuntimeError):
    """A reward that could not be computed, such as a judge that gave no usable answer."""


class InfrastructureError(ArtError, RuntimeError):
    """A server, a sandbox or a service that an attempt needs and that does not work.

    The attempt has no reward; its failure has the reason "infrastructure".
    """


class BackendError(ArtError, RuntimeError):
    """A backend that could not do what it was asked."""


class BudgetError(ArtError, RuntimeError):
    """A step, an evaluation or a call that was not begun, since its budget is spent.

    `scope` is what can't go on: the "run" (or a block of code around attempts), the "attempt", or
    "calls" of it.
    """

    scope: Literal["run", "attempt", "calls"] = "calls"


class EngineError(BackendError):
    """An inference engine that is closed, dead or too late; the message names which and why."""


class HistoryError(ArtError, RuntimeError):
    """The run's log could not be opened, read or written."""


class SinkError(ArtError, RuntimeError):
    """A sink that could not be made or did not take its rows."""


class StoppedError(ArtError, RuntimeError):
    """A training that a sink, such as the doctor, ended before a step; the run's `status` is so."""

    status: str = "stopped"


_LISTED, _ALIKE = 40, 8
_COMPARED, _COMPARABLE = 1000, 200
"""How many names are compared, and the longest name that is: the search takes time in proportion to
both."""


def unknown(kind: str, name: str, known: Iterable[str], *, known_as: str = "known") -> str:
    """Return the message for a name that does not exist: the name, the known names (if there are
    many, the most similar ones) and the nearest match.
    """
    names = sorted(known)
    name = str(name)
    listed = ", ".join(names) or "none"
    if len(names) > _LISTED:
        some = difflib.get_close_matches(
            name[:_COMPARABLE], _around(name, names), n=_ALIKE, cutoff=0.0
        )
        listed = f"{', '.join(some)} and {len(names) - len(some)} more"
    return f"no {kind} {_short(name)!r}; {known_as}: {listed}{did_you_mean(name, names, '.')}"


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """Return " Did you mean 'name'?", after some text, with the nearest name; "" without one."""
    if len(name) > _COMPARABLE:
        return ""
    near = difflib.get_close_matches(name, _around(name, sorted(known)), n=1)
    return f"{before} Did you mean {near[0]!r}?" if near else ""


def _around(name: str, names: list[str]) -> list[str]:
    """Return the names to compare: of very many, those next to the name in the alphabet."""
    middle = bisect.bisect(names, name)
    first = max(0, min(middle - _COMPARED // 2, len(names) - _COMPARED))
    return names[first : first + _COMPARED]


def _short(name: str) -> str:
    return name if len(name) <= _COMPARABLE else f"{name[: _COMPARABLE - 1]}…"


MAX_REASON = 300
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 6
_USER_OF_URL = re.compile(r"://[^/\s@]*:[^/\s@]+@")
_SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"  # user:password@ of a URL
    r"|(?<=bearer )\S+"
    r"|\b(?:(?:sk|pk|hf|gh[opusr]|github_pat|xox[a-z]|em_live)[-_]|AKIA|AIza)[A-Za-z0-9*._-]{8,}"
    r"|(?<=key=)[^&\s]+|(?<=token=)[^&\s]+|(?<=password=)[^&\s]+",
    re.IGNORECASE,
)


_ONLY_DIGITS = re.compile(r"\b[0-9a-f]{32,}\b", re.IGNORECASE)
"""W&B's keys and most others that are only digits; hashes of commits look the same."""
_SECRET_SETTING = re.compile(
    r"(?:^|_)(?:(?:api|access|secret|private|auth|service|account|signing)_?key"
    r"|(?:(?:api|access|auth|bearer|refresh|hf|session)_?)?token"
    r"|(?:client_)?secret|password|passwd|credentials?)$"
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")


def names_secret(name: str) -> bool:
    """Return True if an option or variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def has_password(text: str) -> bool:
    """Return True if a text holds a URL with user and password."""
    return _USER_OF_URL.search(text) is not None


def without_secrets(text: str) -> str:
    """Return a text in which `***` replaces what looks like a key, and the values of environment
    variables whose names look like one.
    """
    return _ONLY_DIGITS.sub("***", _without_known_secrets(text))


def settings_without_secrets(value: Any, name: str = "") -> Any:
    """Return JSON values in which `***` replaces the texts of settings such as `api_key` or
    `hf_token`, and what `without_secrets` replaces. Long hexadecimal numbers (commits) stay; a
    Pydantic model becomes a dict.
    """
    if hasattr(value, "model_dump"):  # a Pydantic model
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {k: settings_without_secrets(v, f"{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [settings_without_secrets(each, name) for each in value]
    if not isinstance(value, str) or not value:
        return value
    words = _WORDS.sub("_", name).lower()
    secret = _SECRET_SETTING.search(words) and not value.startswith("<")  # pad_token: "<pad>"
    return "***" if secret else _without_known_secrets(value)


def _without_known_secrets(text: str) -> str:
    for name, value in os.environ.items():
        if names_secret(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return _SECRETS.sub("***", text)


def reason_of(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, 300 characters at most,
    without secrets.
    """
    message = without_secrets(next(iter(str(error).strip().splitlines()), ""))
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"


def message_text(error: BaseException) -> str:
    """Return an exception's message, or the reason why it has none."""
    try:
        return str(error)
    except Exception as odd:
        return f"<no message: its __str__ raised {type(odd).__name__}>"


def traceback_text(error: BaseException) -> str:
    """Return an exception's traceback, also of one that can't be shown."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception as odd:
        place = "".join(traceback.format_tb(error.__traceback__))
        return f"{place}{type(error).__name__} <not shown: {type(odd).__name__}>\n"


FailureReason = Literal["raised", "infrastructure", "budget", "timeout", "wrong_type", "bad_reward"]


@attrs.frozen(kw_only=True)
class RolloutFailure:
    """An attempt without a trajectory: the kind of failure, its message and its traceback."""

    reason: FailureReason
    type: str
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, reason: FailureReason = "raised") -> RolloutFailure:
        """Describe an exception without secrets, also one whose text cannot be made.

        The reason of an InfrastructureError that was raised, or of an error that one caused, is
        "infrastructure", and that of a BudgetError "budget".
        """
        # a class may have a __cause__ of its own, which raises
        causes = (error, vars(BaseException)["__cause__"].__get__(error))
        if reason == "raised" and any(isinstance(c, InfrastructureError) for c in causes):
            reason = "infrastructure"
        elif reason == "raised" and any(isinstance(c, BudgetError) for c in causes):
            reason = "budget"
        return cls(
            reason=reason,
            type=type(error).__name__,
            message=without_secrets(message_text(error)),
            traceback=without_secrets(traceback_text(error)),
        )

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


def failure_of(error: BaseException | RolloutFailure) -> RolloutFailure:
    """Return a failure as it is, or that of an exception; ConfigError for anything else."""
    if isinstance(error, RolloutFailure):
        return error
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error  # it ends the program, and is no failure of an attempt
    if not isinstance(error, BaseException):
        raise ConfigError(
            f"exceptions of a trajectory group must be exceptions, not {type(error).__name__}"
        )
    return RolloutFailure.of(error)
