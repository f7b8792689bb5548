"""Third stop: the names. Sections, units, how samples combine, what adds up over a run, and old
names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from art_core.base.errors import MetricError, unknown

CATALOGUE_VERSION = 1
_REMEMBERED = 256
_REMEMBERED_KEYS = 65_536
_JOINERS = str.maketrans("", "", "\u200c\u200d")
"""Invisible characters that join letters or emoji: Persian, Hindi and other languages need them."""
Combine = Literal["sum", "mean", "last", "same"]
Direction = Literal["higher", "lower"]
_MEASURES = frozenset({"", "1", "USD", "loss", "nats", "norm", "ratio", "reward", "share"})
_MEASURES |= {
    "s",
    "ms",
    "min",
    "h",
    "B",
    "kB",
    "KB",
    "MB",
    "GB",
    "KiB",
    "MiB",
    "GiB",
    "W",
    "C",
    "%",
}
"""Units that measure. Any other unit names things that are counted: token, group, game."""


@attrs.frozen(kw_only=True)
class MetricSpec:
    """A metric: its key (a `*` at the end stands for any rest), unit, and how it behaves.

    `combine` says what samples of one step become; `cumulative`, whether the run's sum is kept
    under `<section>/cum/...`; `direction`, which values are better, None where neither is;
    `derived`, that the core computes it and it can't be logged.
    """

    key: str
    unit: str
    help: str
    combine: Combine = "mean"
    cumulative: bool = False
    direction: Direction | None = None
    derived: bool = False

    @property
    def counts(self) -> bool:
        """True if values are whole numbers: the unit names things, and they are not averaged."""
        return self.combine != "mean" and "/" not in self.unit and self.unit not in _MEASURES


SPLITS = ("train", "val", "test")


@attrs.define
class Taxonomy:
    """The catalogue in force, plugins included: places names, checks keys, knows old names."""

    specs: dict[str, MetricSpec]
    aliases: dict[str, str]
    _placed: dict[str, dict[str, str]] = attrs.field(factory=dict, init=False, repr=False)
    _resolved: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    _many: dict[tuple[str, tuple[str, ...]], tuple[tuple[str, ...], bool]] = attrs.field(
        factory=dict, init=False, repr=False
    )

    _last: tuple[str, tuple[str, ...], tuple[tuple[str, ...], bool]] = attrs.field(
        default=("", (), ((), True)), init=False, repr=False
    )

    @property
    def sections(self) -> frozenset[str]:
        """First components that keys may have."""
        return frozenset(spec.key.split("/", 1)[0] for spec in self.specs.values())

    def extended(self, specs: Iterable[MetricSpec]) -> Taxonomy:
        """Return a taxonomy with more specs; two unequal specs of one key are a MetricError."""
        merged = dict(self.specs)
        for spec in specs:
            if merged.setdefault(spec.key, spec) != spec:
                raise MetricError(f"metric {spec.key!r} is already defined, differently")
        return Taxonomy(merged, self.aliases)

    def spec(self, key: str) -> MetricSpec:
        """Return the spec of a key: its own, that of the longest pattern, or a plain mean."""
        found = self.specs.get(key)
        if found is not None:
            return found
        fits = [
            s for s in self.specs.values() if s.key.endswith("*") and key.startswith(s.key[:-1])
        ]
        best = max(fits, key=lambda s: len(s.key), default=None)
        return attrs.evolve(best, key=key) if best else MetricSpec(key=key, unit="", help="")

    def is_count(self, key: str) -> bool:
        """Return True if a key counts things; `val/data/...` counts what `data/...` does."""
        return self.spec(key).counts or self.spec(key.partition("/")[2]).counts

    def resolve(self, key: str) -> str:
        """Return the canonical name of a key of an earlier catalogue; others stay."""
        found = self._resolved.get(key)
        if found is None:
            if len(self._resolved) >= _REMEMBERED_KEYS:
                self._resolved.clear()
            found = self._resolved[key] = self._resolve(key)
        return found

    def _resolve(self, key: str) -> str:
        if key in self.aliases:
            return self.aliases[key]
        for old, new in self.aliases.items():
            if old.endswith("*") and key.startswith(old[:-1]) and key not in self.specs:
                return new[:-1] + key[len(old) - 1 :]
        return key

    def former_average(self, key: str) -> str:
        """Return the canonical name of a key beside ART's averages over trajectories: there, a
        trajectory's own metric `m` is `train/m`, which is `reward/m` here.
        """
        found = self.resolve(key)
        if found != key or key in self.specs or not key.startswith("train/"):
            return found
        return "reward/" + key.removeprefix("train/")

    def names(self, keys: Sequence[str], *, foreign: bool) -> list[str]:
        """Return the canonical names of a row's keys; `foreign` says that ART wrote the row.

        A row of ART without `train/reward` averages nothing: its `train/m` was a bare name.
        """
        of = self.former_average if foreign and "train/reward" in keys else self.resolve
        return [of(key) for key in keys]

    def renamed(self, metrics: Mapping[str, float], *, foreign: bool) -> dict[str, float]:
        """Return a row's metrics under their canonical names."""
        names = self.names(tuple(metrics), foreign=foreign)
        return dict(zip(names, metrics.values(), strict=True))

    def place(self, name: str, split: str) -> str:
        """Return the key of a name on a split: sectioned names stay, bare ones go under it, former
        names become today's.

        Raises MetricError for an unknown section, a reserved or malformed key, the legacy
        `costs_...` form, and a split that is named like a section.
        """
        placed = self._placed.get(split)
        if placed is None:
            if split in self.sections.difference(SPLITS):
                raise MetricError(
                    f"a split can't be named {split!r}: its metrics would stand among "
                    f"the section's, {split + '/...'!r}",
                    "Choose another name.",
                )
            placed = self._placed[split] = {}
        key = placed.get(name)
        if key is None:
            key = placed[name] = self._place(name, split)
        return key

    def places(self, names: tuple[str, ...], split: str) -> tuple[tuple[str, ...], bool]:
        """Return the keys of names, and whether these are the names.

        Remembered, since rows of a run mostly have the same ones.
        """
        last_split, last_names, last = self._last
        if names == last_names and split == last_split:
            return last
        placed = self._many.get((split, names))
        if placed is None:
            keys = tuple(self.place(name, split) for name in names)
            if len(set(keys)) != len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise MetricError(
                    f"metric {twice!r} is given twice: with and without its section, or under a "
                    "former name too"
                )
            if len(self._many) >= _REMEMBERED:
                self._many.clear()
            placed = self._many[split, names] = (keys, keys == names)
        self._last = split, names, placed
        return placed

    def _place(self, name: str, split: str) -> str:
        _check_form(name)
        if name.startswith("costs_"):
            raise MetricError(
                f"metric {name!r} has the legacy form", f"Log it as 'costs/{name[6:]}'."
            )
        section, _, rest = name.partition("/")
        if not rest:
            return self.resolve(f"{split}/{name}")
        if section not in self.sections and section != split:
            raise MetricError(
                unknown("metric section", section, self.sections) + f" (in {name!r})",
                "A bare name goes under the split; a plugin may register a section.",
            )
        name = self.resolve(name)
        if (
            "cum" in name.split("/")[1:]
            or self.spec(name).derived
            or name.startswith("costs/all/")  # the sum of everything has nothing of its own
        ):
            raise MetricError(
                f"metric {name!r} is reserved", "The core derives it from what is logged."
            )
        return name

    def direction(self, key: str) -> Direction | None:
        """Tell which values of a key are better; old names count as the new ones."""
        return self.spec(self.resolve(key)).direction


def _check_form(name: Any) -> None:
    if not isinstance(name, str):
        raise MetricError(f"a metric's name must be a string, got {name!r}")
    parts = name.translate(_JOINERS).split("/")
    if not all(p and p == p.strip() and p.isprintable() for p in parts):
        raise MetricError(
            f"metric {name!r} has an empty component or stray white space or control characters"
        )


def cumulative_key(key: str) -> str:
    """Return where a key's running sum is kept: `time/step_trainer_s` gives
    `time/cum/trainer_s`.
    """
    section, _, rest = key.partition("/")
    # Of costs it would make one of two: `costs/step_judge` and `costs/judge`.
    return f"{section}/cum/{rest if section == 'costs' else rest.removeprefix('step_')}"


def number(name: str, value: Any) -> float:
    """Return a metric's value as a float; MetricError for what is not a number."""
    if type(value) is float:
        return value
    if value is None or isinstance(value, (str, bytes, bytearray)):
        raise MetricError(f"metric {name!r} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    except (TypeError, ValueError, RuntimeError):
        raise MetricError(f"metric {name!r} must be a number, got {type(value).__name__}") from None


def total(values: Sequence[float]) -> float:
    """Return the exact sum of samples; what is not finite, or too large, shows in it."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def combine_values(values: Sequence[float], rule: str) -> float:
    """Return the sum, the mean or the last of samples, by a spec's `combine`."""
    if rule == "sum":
        return total(values)
    return total(values) / len(values) if rule == "mean" else values[-1]


def place_all(
    taxonomy: Taxonomy, metrics: Mapping[str, Any], split: str
) -> tuple[Mapping[str, float], tuple[str, ...]]:
    """Place every name, make every value a float; return them, and their keys alone.

    Raises MetricError for two names of one key, and for what is not a number.
    """
    names = tuple(metrics)
    keys, unchanged = taxonomy.places(names, split)
    if list(map(type, metrics.values())).count(float) != len(names):
        values = [number(name, value) for name, value in metrics.items()]
        return dict(zip(keys, values, strict=True)), keys
    return (metrics if unchanged else dict(zip(keys, metrics.values(), strict=True))), keys
