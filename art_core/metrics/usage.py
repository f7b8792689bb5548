"""Usage: the tokens of an API call, the time of devices, and the fields of a usage object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from numbers import Number
from typing import Any

import attrs
from attrs.validators import optional

from art_core.base.numbers import (
    as_count,
    as_number,
    as_number_or_none,
    check_count,
    check_price,
    check_seconds,
    count_of,
    text_of,
    to_texts,
)

_DEPTH = 6


def count() -> Any:
    """Return an attrs field for a count, 0 by default."""
    return attrs.field(default=0, converter=as_count, validator=check_count)


@attrs.frozen(kw_only=True)
class TokenUsage:
    """Tokens of one call. `input_tokens` is the whole prompt, cache reads and writes included.

    `cache_write_1h_tokens` is the part of `cache_write_tokens` that is cached for an hour. Tokens
    of audio and images are parts of the prompt, of its cache reads and of the answer.
    `train_tokens` are those that a hosted training service trained on, in no other count.
    `web_searches` and `file_searches` were made by the provider and are billed by the search;
    `grounded_prompts` is 1 when there were web searches, for models that bill by the prompt.
    `service_tier` is the tier that the provider reports ("flex", "priority", "batch"), `speed` and
    `geography` likewise ("fast", "us"). `cost_usd` is the cost that the provider itself reports; it
    wins over any price. `unread` names parts of the bill that were not understood. Counts may be
    numbers of NumPy or torch; ConfigError names a value that is not a count.
    """

    input_tokens: int = count()
    output_tokens: int = count()
    cache_read_tokens: int = count()
    cache_write_tokens: int = count()
    cache_write_1h_tokens: int = count()
    train_tokens: int = count()
    web_searches: int = count()
    input_audio_tokens: int = count()
    output_audio_tokens: int = count()
    cache_read_audio_tokens: int = count()
    input_image_tokens: int = count()
    output_image_tokens: int = count()
    cache_read_image_tokens: int = count()
    grounded_prompts: int = count()
    file_searches: int = count()
    service_tier: str | None = None
    speed: str | None = None
    geography: str | None = None
    cost_usd: float | None = None
    unread: tuple[str, ...] = attrs.field(default=(), converter=to_texts)

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer, and those trained on."""
        return self.input_tokens + self.output_tokens + self.train_tokens

    @property
    def terms(self) -> dict[str, str]:
        """Unusual terms that the price depends on: tier, speed and geography."""
        reported = {
            "service_tier": self.service_tier,
            "speed": self.speed,
            "geography": self.geography,
        }
        texts = {name: getattr(value, "value", value) for name, value in reported.items() if value}
        lower = {name: str(value).lower() for name, value in texts.items()}
        return {name: value for name, value in lower.items() if value not in USUAL}


USUAL = {
    *("default", "standard", "auto", "on_demand", "unspecified"),
    *("global", "not_available"),
}
"""Tiers, speeds and geographies that list prices are for."""
COUNTS = tuple(f.name for f in attrs.fields(TokenUsage) if f.default == 0)
"""The names of the counts of a TokenUsage."""


@attrs.frozen(kw_only=True)
class GpuTime:
    """Time of devices: `seconds` of `count` devices named `device`.

    `usd_per_hour` is the user's price of one device-hour. Without it the price hooks are asked.
    """

    device: str = attrs.field(converter=text_of)
    seconds: float = attrs.field(converter=as_number, validator=check_seconds)
    count: int = attrs.field(default=1, converter=as_count, validator=check_count)
    usd_per_hour: float | None = attrs.field(
        default=None, converter=as_number_or_none, validator=optional(check_price)
    )


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
