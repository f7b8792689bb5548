"""The names of metrics: sections, units, how samples combine, the tree of costs, former names.

The built-in metrics, and their names in earlier releases of ART, are in `catalogue.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import attrs
import orjson

from art_core.base.errors import MetricError, unknown

CATALOGUE_VERSION = 1
_JOINERS = str.maketrans("", "", "\u200c\u200d")
"""Invisible characters that join letters or emoji: Persian, Hindi and other languages need them."""
Combine = Literal["sum", "mean", "last", "same"]
Direction = Literal["higher", "lower"]
_MEASURES = "1 USD loss nats norm ratio reward share s ms min h B kB KB MB GB KiB MiB GiB W C %"
"""Units of measurements. Any other unit is the name of what is counted: token, group, game."""


@attrs.frozen(kw_only=True)
class MetricSpec:
    """A metric: its key (a `*` at the end stands for any rest), its unit and its rules.

    `combine` is the rule by which samples of one step become one value. A `cumulative` metric has
    its running sum under `<section>/cum/...`. `direction` is that of better values, None where
    neither is better. A `derived` metric is computed by the core and can't be logged.
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
        """True if the metric counts things: its unit is their name, and values are not averaged."""
        measures = not self.unit or "/" in self.unit or self.unit in _MEASURES.split()
        return self.combine != "mean" and not measures


SPLITS = ("train", "val", "test")


@attrs.define
class Taxonomy:
    """The metrics of this process, those of plugins included: places names and checks keys."""

    specs: dict[str, MetricSpec]
    aliases: dict[str, str]
    sections: frozenset[str] = attrs.field(init=False, repr=False)
    """First components that keys may have."""
    _patterns: list[tuple[str, MetricSpec]] = attrs.field(init=False, repr=False)
    _former: dict[str, str] = attrs.field(init=False, repr=False)
    _former_starts: tuple[str, ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.sections = frozenset(key.partition("/")[0] for key in self.specs)
        patterns = [(key[:-1], spec) for key, spec in self.specs.items() if key.endswith("*")]
        self._patterns = sorted(patterns, key=lambda pattern: -len(pattern[0]))
        old = self.aliases.items()
        self._former = {key[:-1]: new[:-1] for key, new in old if key.endswith("*")}
        self._former_starts = tuple(self._former)

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
        for start, spec in self._patterns:
            if key.startswith(start):
                return attrs.evolve(spec, key=key)
        return MetricSpec(key=key, unit="", help="")

    def is_count(self, key: str) -> bool:
        """Return True if a key counts things; `val/data/...` counts what `data/...` does."""
        return self.spec(key).counts or self.spec(key.partition("/")[2]).counts

    def resolve(self, key: str) -> str:
        """Return the canonical name of a key of an earlier catalogue; others stay."""
        if key in self.aliases:
            return self.aliases[key]
        if not key.startswith(self._former_starts) or key in self.specs:
            return key
        old = next(start for start in self._former_starts if key.startswith(start))
        return self._former[old] + key.removeprefix(old)

    def former_average(self, key: str) -> str:
        """Return the canonical name of a key in a row of averages that ART wrote.

        A trajectory's own metric `m` is `train/m` there, and `reward/m` here.
        """
        found = self.resolve(key)
        if found != key or key in self.specs or not key.startswith("train/"):
            return found
        return "reward/" + key.removeprefix("train/")

    def names(self, keys: Sequence[str], *, foreign: bool) -> list[str]:
        """Return the canonical names of a row's keys. ART wrote a `foreign` row.

        A row of ART without `train/reward` has no averages: its `train/m` was a bare name.
        """
        of = self.former_average if foreign and "train/reward" in keys else self.resolve
        return [of(key) for key in keys]

    def renamed(self, metrics: Mapping[str, float], *, foreign: bool) -> dict[str, float]:
        """Return a row's metrics under their canonical names."""
        names = self.names(tuple(metrics), foreign=foreign)
        return dict(zip(names, metrics.values(), strict=True))

    def check_split(self, split: str) -> None:
        """Raise MetricError for a split that has the name of a section."""
        if split in self.sections and split not in SPLITS:
            raise MetricError(
                f"a split can't be named {split!r}: its metrics would stand among "
                f"the section's, {split + '/...'!r}",
                "Choose another name.",
            )

    def place(self, name: str, split: str) -> str:
        """Return the key of a name on a split: sectioned names stay, bare ones go under it, former
        names become today's.

        Raises MetricError for an unknown section, a reserved or malformed key, the legacy
        `costs_...` form, and a split that is named like a section.
        """
        self.check_split(split)
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
        """Return the direction of better values of a key, also of a former name."""
        return self.spec(self.resolve(key)).direction


def _check_form(name: Any) -> None:
    if not isinstance(name, str):
        raise MetricError(f"a metric's name must be a string, got {name!r}")
    parts = name.translate(_JOINERS).split("/")
    if not all(p and p == p.strip() and p.isprintable() for p in parts):
        raise MetricError(
            f"metric {name!r} has an empty component or stray white space or control characters"
        )


@cache
def builtin_taxonomy() -> Taxonomy:
    """Return the metrics in `catalogue.json`, without those of plugins.

    Its `aliases` are names of ART 0.5.17 to 0.5.23, for reading only. `train/<metric>` of those
    releases is `reward/<metric>` here. A bare name logged on train has the same form, so
    `Taxonomy.names` looks at the whole row.
    """
    data = orjson.loads(files("art_core.metrics").joinpath("catalogue.json").read_bytes())
    specs = [MetricSpec(**spec) for spec in data["specs"]]
    return Taxonomy({spec.key: spec for spec in specs}, data["aliases"])


@attrs.define
class CostTree:
    """The cost leaves of a run, and the parents above them; a leaf is never a parent."""

    leaves: set[str] = attrs.field(factory=set)
    parents: set[str] = attrs.field(factory=set)

    @classmethod
    def of_totals(cls, totals: Mapping[str, float]) -> CostTree:
        """Return the tree of the costs that a run has logged."""
        sums = [key for key in totals if key.startswith("costs/cum/")]
        keys = {"costs" + key.removeprefix("costs/cum") for key in sums}
        parents = {parent for key in keys for parent in ancestors(key)}
        return cls(keys - parents - {"costs/all"}, parents)

    def add(self, leaf: str) -> None:
        """Add a leaf that does not conflict with others."""
        self.leaves.add(leaf)
        self.parents.update(ancestors(leaf))

    def check(self, leaf: str) -> None:
        """Raise MetricError for a leaf that is a parent already, or whose parent is a leaf."""
        if leaf in self.parents:
            raise MetricError(
                f"cost {leaf!r} is the sum of the costs below it and can't be logged itself",
                f"Log it as a leaf, such as {leaf + '/other'!r}.",
            )
        for parent in ancestors(leaf):
            if parent in self.leaves:
                raise MetricError(
                    f"cost {leaf!r} can't stand under {parent!r}, which was logged as a leaf "
                    "earlier in this run",
                    f"Log {parent!r} no longer, or choose another path.",
                )

    def resolve_conflict(self, leaf: str) -> str:
        """Return the nearest valid leaf: the given one, its parent if that is a leaf, or a new leaf
        below it if it is a parent.
        """
        for parent in ancestors(leaf):
            if parent in self.leaves:
                return parent
        while leaf in self.parents:
            leaf += "/other"
        return leaf


def ancestors(leaf: str) -> list[str]:
    """Return the sums that a cost leaf is part of, without `costs/all`, the widest first."""
    parts = leaf.split("/")
    return ["/".join(parts[:n]) for n in range(2, len(parts))]


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
    """Return the exact sum of samples; infinite when they, or their sum, are not finite floats."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def combine_values(values: Sequence[float], rule: str) -> float:
    """Return the sum, the mean or the last of samples, by a spec's `combine`."""
    if rule == "sum":
        return total(values)
    return total(values) / len(values) if rule == "mean" else values[-1]
