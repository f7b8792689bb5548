"""The prices that a run was booked at, beside the newest that are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, Literal

import attrs

from art_core.log.reader import LoggedRun
from art_core.metrics.receipt import Receipt
from art_core.prices.book import api_prices
from art_core.prices.tables import gpu_rate_origin, is_old
from art_core.reports.costs import item_name, read_costs
from art_core.reports.reprice import Prices, was_given

_SAME = 1e-6
"""Costs that differ by less than this part are equal: the rest is rounding."""

Finding = Literal["unpriced", "changed", "old", "given", "reported", ""]
OUTDATED = ("unpriced", "changed", "old")
"""The findings that `art prices check` fails by."""


@attrs.frozen(kw_only=True)
class CheckedPrice:
    """A purchase of a run at its own price and at the newest: US dollars, and the rates that differ
    as {name: (booked, newest)}. `as_of` is the day of the newest price; None where none is known.

    `finding` is "" for a price that still holds, "given" for one that the run's own code gave, and
    "reported" for a cost that the provider named.
    """

    run: str
    receipt: Receipt
    now_usd: float | None
    rates: Mapping[str, tuple[float | None, float | None]]
    as_of: str | None
    finding: Finding

    @property
    def item(self) -> str:
        """The name of the model or device as provider/item."""
        return item_name(self.receipt)

    @property
    def change(self) -> float | None:
        """The newest cost over the booked one, less 1; None without either."""
        booked, now = self.receipt.usd, self.now_usd
        return now / booked - 1 if booked and now is not None else None


def check_prices(run: LoggedRun, prices: Prices, today: date, days: int) -> Iterator[CheckedPrice]:
    """Yield what a run bought with its prices checked: purchases without a price, then the most
    expensive first. A price is old after some days.
    """
    api = api_prices()
    book_day = None if api is None else api.day()
    report = read_costs(run)
    for receipt in (*report.unpriced(), *report.priced()):
        newest = _newest(receipt, prices)
        as_of = newest.get("as_of")
        if as_of is None and str(newest.get("source", "")).startswith("genai-prices "):
            as_of = book_day
        now = prices.usd(receipt)
        yield CheckedPrice(
            run=run.name,
            receipt=receipt,
            now_usd=now,
            rates={} if receipt.reported else _differing(receipt, newest),
            as_of=as_of,
            finding=_finding(receipt, now) or ("old" if is_old(as_of, today, days) else ""),
        )


def _newest(receipt: Receipt, prices: Prices) -> Mapping[str, Any]:
    """Return the newest rates with their origin; nothing where none is known."""
    if not receipt.device_seconds:
        rates = prices.rates(receipt)
        return {} if rates is None else attrs.asdict(rates)
    hourly = prices.hourly(receipt)
    if hourly is None:
        return {}
    return {"usd_per_hour": hourly} | gpu_rate_origin(receipt.item, hourly)


def _differing(
    receipt: Receipt, newest: Mapping[str, Any]
) -> dict[str, tuple[float | None, float | None]]:
    if receipt.usd is None or not newest:
        return {}
    names = [name for name in newest if "_per_" in name]
    pairs = {name: (receipt.rates.get(name), newest[name]) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _finding(receipt: Receipt, now: float | None) -> Finding:
    if receipt.reported:
        return "reported"
    if receipt.usd is None:
        return "unpriced"
    if was_given(receipt):
        return "given"
    if now is not None and abs(now - receipt.usd) > _SAME * max(now, receipt.usd):
        return "changed"
    return ""
