"""Copies of trajectories and answers without log-probs, which are most of their bytes."""

from __future__ import annotations

import copy
from typing import Any


def strip_logprobs(obj: Any) -> Any:
    """Return a deep copy of nested values in which dicts have no `logprobs`, and objects None.

    A value that cannot be copied is returned as it is.
    """
    try:
        return _stripped(copy.deepcopy(obj))
    except Exception:
        return obj


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(each) for name, each in value.items() if name != "logprobs"}
    if isinstance(value, list | tuple):
        return type(value)(map(_stripped, value))
    for name in _attributes(value):
        each = None if name == "logprobs" else _stripped(getattr(value, name))
        setattr(value, name, each)
    return value


def _attributes(value: Any) -> list[str]:
    """Return the names of an object's values: those of trajectories too, which have slots."""
    fields = getattr(type(value), "__attrs_attrs__", ())
    return [*(field.name for field in fields), *getattr(value, "__dict__", ())]
