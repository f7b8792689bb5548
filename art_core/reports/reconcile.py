"""A run's estimated costs of API models beside a service's bill, by day and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, timedelta

import attrs

from art_core.costs.builder import bare_name
from art_core.log.history import MetricsRow
from art_core.log.reader import LoggedRun, receipts_of
from art_core.reports.bills import DatedBill, Use, undated

_TIMES = ("time/step_wall_s", "time/step_eval_s")
_NEAR = 0.005
"""Amounts that differ by less than this part are taken as equal."""
_UNBILLED_TIERS = {"anthropic": ("priority",)}
"""Tiers that a service's costs leave out."""


@attrs.define(kw_only=True)
class Estimate(Use):
    """What a run's receipts have of a model on a day, and how many of its calls have no price or a
    price in part.
    """

    unpriced: int = 0
    partly: int = 0
    searches: int = 0


@attrs.define(kw_only=True)
class Estimates:
    """A run's receipts of one provider by (day, model), each on the day of its row. `days` are the
    days of possible calls; `over_midnight` counts the rows that began on the day before.
    """

    uses: dict[tuple[date, str], Estimate] = attrs.field(factory=dict)
    days: set[date] = attrs.field(factory=set)
    over_midnight: int = 0

    @property
    def models(self) -> set[str]:
        """The models that the run called."""
        return {model for _, model in self.uses}


@attrs.frozen(kw_only=True)
class Compared:
    """US dollars of a model on a day: those that were booked, those billed, and why they differ."""

    day: date
    model: str
    estimate_usd: float
    billed_usd: float
    reason: str


def estimates_of(run: LoggedRun, provider: str) -> Estimates:
    """Read a run's receipts of one provider, in days of UTC."""
    found = Estimates()
    for row in run.rows():
        receipts = [r for r in receipts_of(row) if r.provider.lower() == provider]
        if not receipts:
            continue
        day = row.recorded_at.astimezone(UTC).date()
        begun = _began(row)
        found.days |= {day, begun}
        found.over_midnight += begun < day
        for receipt in receipts:
            model = undated(bare_name(receipt.provider, receipt.item))
            use = found.uses.setdefault((day, model), Estimate())
            use.usd += receipt.usd or 0.0
            use.unpriced += receipt.calls if receipt.usd is None else 0
            use.partly += receipt.calls if receipt.unread else 0
            use.searches += receipt.web_searches + receipt.file_searches
            use.add(
                input=receipt.input_tokens,
                cached=receipt.cache_read_tokens,
                output=receipt.output_tokens,
                tier=receipt.tier,
                calls=receipt.calls,
            )
    return found


def _began(row: MetricsRow) -> date:
    """Return the day on which the calls of a row began, one day before it at the earliest."""
    seconds = max((row.metrics.get(name, 0.0) for name in _TIMES), default=0.0)
    lasted = timedelta(seconds=min(max(seconds, 0.0), 86400.0))
    return (row.recorded_at - lasted).astimezone(UTC).date()


def compared(
    provider: str, estimates: Estimates, bill: DatedBill, today: date
) -> Iterator[Compared]:
    """Yield the run's models by day and name, those that were booked or billed on that day."""
    for day in sorted(estimates.days):
        for model in sorted(estimates.models):
            booked = estimates.uses.get((day, model), Estimate())
            billed = bill.uses.get((day, model), Use())
            if booked.calls or billed.usd or billed.input:
                reasons = _reasons(provider, booked, billed)
                if day >= today:
                    reasons = ("the day is not complete", *reasons)
                yield Compared(
                    day=day,
                    model=model,
                    estimate_usd=booked.usd,
                    billed_usd=billed.usd,
                    reason="; ".join(reasons),
                )


def _reasons(provider: str, booked: Estimate, billed: Use) -> tuple[str, ...]:
    """Return what is known about why a bill differs from an estimate; nothing where it does not."""
    if _near(booked.usd, billed.usd) and not booked.unpriced:
        return ()
    unbilled = [tier for tier in _UNBILLED_TIERS.get(provider, ()) if tier in booked.tiers]
    found = [
        (booked.unpriced, f"{booked.unpriced:,} calls without a price here"),
        (booked.partly, f"{booked.partly:,} calls priced in part here"),
        (booked.searches, "searches are an item of their own in the bill"),
        *((True, f"the bill leaves out the tier {tier}") for tier in unbilled),
        *_tokens(booked, billed),
    ]
    known = tuple(text for holds, text in found if holds)
    return known or ("the same tokens at another price: art prices check",)


def _tokens(booked: Estimate, billed: Use) -> Iterator[tuple[bool, str]]:
    here, there = booked.input + booked.output, billed.input + billed.output
    if billed.usd and not there:
        yield True, "the service counts no tokens of it"
        return
    same = _near(here, there)
    yield not same and there > here, f"{there - here:,} more tokens billed: other programs' calls"
    yield not same and there < here, f"{here - there:,} tokens are not in the bill"
    cached = abs(booked.cached - billed.cached) > _NEAR * max(booked.input, billed.input)
    yield same and cached, f"cached tokens: {billed.cached:,} billed, {booked.cached:,} here"
    yield same and _shifted(booked.tiers, billed.tiers), f"tiers billed: {_listed(billed.tiers)}"


def _shifted(here: Mapping[str, int], there: Mapping[str, int]) -> bool:
    names = here.keys() | there.keys()
    return any(not _near(here.get(name, 0), there.get(name, 0)) for name in names)


def _listed(tiers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(tiers.items()))


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= _NEAR * max(one, other)
