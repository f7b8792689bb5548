"""Rules about shares: one part of the reward has its spread, or old prices have the dollars."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from art_core.checks.curves import RunCurves, change_of, finite, last_stretch, smoothed, windows
from art_core.checks.finding import Finding
from art_core.checks.levels import STEPS, WIDTH, found
from art_core.prices.tables import OLD_AFTER_DAYS

PART_STD = "reward/part_std_dev/"
PART_SHARE, COMPARED, APART, HELD, SOLVED = 0.98, 8, 10, 2, 0.9
OLD_SHARE = 0.2


def one_component(curves: RunCurves) -> Iterator[Finding]:
    """Find steps in which one part has the reward's variance and the others do not move.

    Parts whose mean is above nine tenths of 1, or of their highest, are learned and do not count.
    """
    names = [key.removeprefix(PART_STD) for key in curves.columns if key.startswith(PART_STD)]
    shares = _variance_shares({name: curves.column(PART_STD + name) for name in names})
    for name, values in shares.items():
        owns = [share >= PART_SHARE for share in smoothed(values, WIDTH)]
        if last_stretch(owns, STEPS) is None:
            continue
        columns = [curves.column(f"reward/{other}") for other in names if other != name]
        others = [(values, SOLVED * max([1.0, *finite(values)])) for values in columns]
        still = {
            place
            for place, before, after in windows(len(values), COMPARED, APART)
            if owns[place] and _stand_still(others, before, after)
        }
        stretch = last_stretch([place in still for place in range(len(values))], HELD)
        if stretch is None:
            continue
        first, last = stretch
        while first > 0 and values[first - 1] >= PART_SHARE:
            first -= 1
        share = fmean(finite(values[first : last + 1]))
        yield found(
            curves,
            (first, last),
            rule="one-component",
            problem=f"the part {name!r} has {share:.1%} of the reward's variance in groups, and "
            f"the other parts do not move (limit {PART_SHARE:.0%})",
            numbers={"share": share, "limit": PART_SHARE},
            metric=f"{PART_STD}{name}",
            change="Change the weights of the reward's parts, or their range.",
        )


def _variance_shares(stds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Return the part of each in the sum of squares, step by step; NaN where all are 0."""
    sums = [math.fsum(std * std for std in step) for step in zip(*stds.values(), strict=True)]
    return {
        name: [
            std * std / all_of_it if all_of_it else math.nan
            for std, all_of_it in zip(values, sums, strict=True)
        ]
        for name, values in stds.items()
    }


def _stand_still(
    others: Sequence[tuple[Sequence[float], float]], before: slice, after: slice
) -> bool:
    """Return whether parts that are below their limit are there, and none of them changes."""
    changes = []
    for values, limit in others:
        change = change_of(values[before], values[after])
        if change is not None and fmean(finite(values[after])) < limit:
            changes.append(change)
    return bool(changes) and all(abs(change.gain) <= 2 * change.error for change in changes)


def outdated_prices(curves: RunCurves) -> Iterator[Finding]:
    """Find steps of whose dollars a fifth was booked at prices more than 60 days old."""
    old = [purchase for purchase in curves.purchases if purchase.age_days > OLD_AFTER_DAYS]
    usd: dict[int, float] = {}
    for purchase in old:
        usd[purchase.step] = usd.get(purchase.step, 0.0) + purchase.usd
    shares = [
        usd.get(step, 0.0) / curves.usd[step] if curves.usd.get(step) else math.nan
        for step in curves.steps
    ]
    stretch = last_stretch([share >= OLD_SHARE for share in shares], STEPS)
    if stretch is not None:
        first, last = stretch
        share = fmean(shares[first : last + 1])
        places = range(curves.steps[first], curves.steps[last] + 1)
        oldest = max((p for p in old if p.step in places), key=lambda p: p.age_days)
        yield found(
            curves,
            stretch,
            rule="outdated-prices",
            problem=f"{share:.0%} of the dollars are booked at prices more than {OLD_AFTER_DAYS} "
            f"days old; that of {oldest.item} was {oldest.age_days} days old",
            numbers={"share": share, "limit": OLD_SHARE, "days": float(oldest.age_days)},
            metric="costs/all",
            change="Run `art prices update`; `art prices check RUN` compares the run's prices.",
        )
