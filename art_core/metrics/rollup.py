"""Sixth stop: from leaves to a row. The cost tree, the running sums and what is derived from them;
pure.

A `Plan` is compiled once for each set of leaf keys: rows of a run mostly have the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter

import attrs

from art_core.base.errors import MetricError
from art_core.metrics.taxonomy import Taxonomy, cumulative_key

Totals = Mapping[str, float]
"""The run's running sums, `costs/cum/...`, `time/cum/...`, `data/cum/...`; each row carries them
all.
"""

UNIQUE_SCENARIOS = "data/cum/num_unique_scenarios"
_RATES = (
    ("throughput/avg_trainer_tok_per_s", "data/cum/trainer_tokens", "time/cum/trainer_s"),
    ("throughput/avg_actor_tok_per_s", "data/cum/actor_tokens", "time/cum/actor_s"),
)


Values = Callable[[Mapping[str, float]], Iterable[float]]


@attrs.frozen
class Plan:
    """What to do with leaves of these keys.

    `costs` are the cost leaves. `sums` are pairs of a parent and what reads its children, deepest
    first. `running` are pairs of a key and the total that it is added to; `totals` holds a zero for
    each of those.
    """

    keys: tuple[str, ...]
    costs: tuple[str, ...]
    sums: tuple[tuple[str, Values], ...]
    running: tuple[tuple[str, str], ...]
    totals: dict[str, float]


NO_PLAN = Plan((), (), (), (), {})


def compile_plan(keys: Collection[str], totals: Totals, taxonomy: Taxonomy) -> Plan:
    """Make the plan of a set of leaf keys.

    Raises MetricError when a cost is a leaf here and a parent elsewhere in the row or the run.
    """
    leaves = [key for key in keys if key.startswith("costs/")]
    seen = leaves_of_totals(totals)
    parents = {parent for leaf in leaves for parent in ancestors(leaf)}
    all_parents = parents | {parent for leaf in seen for parent in ancestors(leaf)}
    for leaf in leaves:
        check_leaf(leaf, seen, all_parents)
    nested = sorted(parents, key=lambda key: (-key.count("/"), key))
    summed = [*nested, "costs/all"] if leaves else []
    children: dict[str, list[str]] = {}
    for node in (*leaves, *nested):
        children.setdefault(_parent(node), []).append(node)
    added_up = [
        *leaves,
        *(k for k in keys if not k.startswith("costs/") and taxonomy.spec(k).cumulative),
        *summed,
    ]
    return Plan(
        keys=tuple(keys),
        costs=tuple(leaves),
        sums=tuple((parent, _values_of(children[parent])) for parent in summed),
        running=tuple((key, cumulative_key(key)) for key in added_up),
        totals={cumulative_key(key): 0.0 for key in added_up},
    )


def roll(
    leaves: Mapping[str, float], totals: Totals, plan: Plan
) -> tuple[dict[str, float], dict[str, float]]:
    """Return (metrics, totals'): leaves with their parents, new totals and their ratios; O(nodes).

    `totals` must hold every total of the plan: `{**plan.totals, **totals_so_far}`.
    Raises MetricError for a negative cost.
    """
    for leaf in plan.costs:
        if leaves[leaf] < 0:
            raise MetricError(f"a cost can't be negative: {leaf!r} {leaves[leaf]!r}")
    metrics = {**leaves}
    for parent, children_of in plan.sums:
        metrics[parent] = sum(children_of(metrics))
    new = {**totals}
    for key, total in plan.running:
        new[total] += metrics[key]
    metrics.update(new)
    for rate, tokens, seconds in _RATES:
        elapsed = new.get(seconds)
        if elapsed and tokens in new:
            metrics[rate] = new[tokens] / elapsed
    return metrics, new


def _values_of(keys: Sequence[str]) -> Values:
    """Return what reads the values of keys out of a row, faster than a loop would."""
    return itemgetter(*keys) if len(keys) > 1 else lambda values: (values[keys[0]],)


def totals_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Read the totals back out of a row: the last row of a run is its state."""
    return {key: value for key, value in metrics.items() if "/cum/" in key}


def _parent(key: str) -> str:
    head, _, _ = key.rpartition("/")
    return "costs/all" if head == "costs" else head


def ancestors(leaf: str) -> Iterable[str]:
    """Yield the sums that a cost leaf is part of, `costs/all` apart, the widest first."""
    parts = leaf.split("/")
    return ("/".join(parts[:n]) for n in range(2, len(parts)))


def leaves_of_totals(totals: Totals) -> set[str]:
    """Return the cost leaves that a run has seen."""
    seen = {"costs" + k.removeprefix("costs/cum") for k in totals if k.startswith("costs/cum/")}
    return seen - {parent for key in seen for parent in ancestors(key)} - {"costs/all"}


def fitting(leaf: str, leaves: Collection[str], parents: Collection[str]) -> str:
    """Return where the costs of a leaf may stand beside those leaves and parents: there, at the
    leaf that it lies below, or under the parent that it is.
    """
    above = next((parent for parent in ancestors(leaf) if parent in leaves), None)
    if above is not None:
        return above
    while leaf in parents:
        leaf += "/other"
    return leaf


def check_leaf(leaf: str, leaves: Collection[str], parents: Collection[str]) -> None:
    """Raise MetricError for a cost leaf that is a parent already, or whose parent is a leaf."""
    if leaf in parents:
        raise MetricError(
            f"cost {leaf!r} is the sum of the costs below it and can't be logged itself",
            f"Log it as a leaf, {leaf + '/other'!r} say.",
        )
    for parent in ancestors(leaf):
        if parent in leaves:
            raise MetricError(
                f"cost {leaf!r} can't stand under {parent!r}, which was logged as a leaf earlier "
                "in this run",
                f"Log {parent!r} no longer, or choose another path.",
            )
