"""Why a run failed, in one line that may be shown to others: short, and without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 300
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
    variables that are named like one.
    """
    return _ONLY_DIGITS.sub("***", _without_known_secrets(text))


def settings_without_secrets(value: Any, name: str = "") -> Any:
    """Return JSON values in which `***` replaces the texts of settings such as `api_key` or
    `hf_token`, and what `without_secrets` replaces. Long hexadecimal numbers stay: commits, say.
    """
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
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
