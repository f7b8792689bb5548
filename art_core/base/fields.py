"""Read the fields of an object or a dict by dotted paths, and remember which were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from numbers import Number
from typing import Any

from art_core.base.numbers import count_of

_DEPTH = 6


def field(value: Any, *path: str) -> Any:
    """Read a nested field of a response that is an object or a dict; None where it is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


class Fields:
    """Reads the fields of a usage object or dict by dotted paths, and remembers which were read.

    `unread` names the others that are there and not zero: something that may have been billed.
    """

    def __init__(self, usage: Any, root: str = "usage") -> None:
        self.usage = usage
        self.root = root
        self._read: set[str] = set()

    def get(self, path: str) -> Any:
        """Return a field, None where it is missing."""
        self._read.add(path)
        return field(self.usage, *path.split("."))

    def count(self, path: str) -> int:
        """Return a count, 0 where it is missing; ConfigError for a value that is not a count."""
        value = self.get(path)
        return 0 if value is None else count_of(path, value)

    def first(self, *paths: str) -> int:
        """Return the first count that is not 0 of several names for the same thing."""
        return next(filter(None, [self.count(path) for path in paths]), 0)

    def known(self, *paths: str) -> None:
        """Mark fields that change no price, or repeat other fields."""
        self._read.update(paths)

    def unread(self) -> tuple[str, ...]:
        """Return the paths of fields that are there, not zero, and were not read."""
        found = dict.fromkeys(path for path in _leaves(self.usage) if not self._is_read(path))
        return tuple(f"{self.root}.{path}" for path in found)

    def _is_read(self, path: str) -> bool:
        names = path.replace("[]", "").split(".")
        return any(".".join(names[:n]) in self._read for n in range(1, len(names) + 1))


def _leaves(value: Any, path: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Yield the paths of all numbers that are not 0 and texts that are not empty."""
    if isinstance(value, (str, Number, Enum)):
        if value and path:
            yield path
    elif isinstance(value, (list, tuple)):
        for item in value if depth else ():
            yield from _leaves(item, f"{path}[]", depth - 1)
    elif depth:
        for name, item in _members(value):
            yield from _leaves(item, f"{path}.{name}" if path else name, depth - 1)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), item) for name, item in value.items())
        return
    extra = getattr(value, "__pydantic_extra__", None)
    for members in (getattr(value, "__dict__", None), extra):
        if isinstance(members, dict):
            yield from ((k, item) for k, item in members.items() if not k.startswith("_"))
