"""`art prices check RUN`: the prices that runs were booked at, beside the newest."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_directory
from art_core.cli.completion import completed, run_names
from art_core.cli.text import counted, signed_percent, usd_column
from art_core.costs.builder import PriceBook
from art_core.hooks.commands import Column, ExitStatus, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import LoggedRun, find_run, find_runs
from art_core.log.rundir import runs_path
from art_core.prices.tables import OLD_AFTER_DAYS
from art_core.reports.price_check import OUTDATED, CheckedPrice, check_prices
from art_core.reports.reprice import Prices


def add_check(actions: Any, text: str) -> None:
    """Add the command to those of `art prices`, with their help."""
    parser = actions.add_parser("check", help="compare runs' prices with the newest", epilog=text)
    runs = parser.add_argument("names", metavar="RUN", nargs="*", help="a run, or several")
    completed(runs, run_names)
    add_directory(parser)
    parser.add_argument("--all", action="store_true", help="all runs in the directory")
    parser.add_argument(
        "--older-than",
        metavar="DAYS",
        type=int,
        default=OLD_AFTER_DAYS,
        help=f"a price is old after so many days (default: {OLD_AFTER_DAYS})",
    )
    parser.set_defaults(run=check)


def check(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the prices of runs beside the newest; the exit status is 1 if any is outdated."""
    if bool(arguments.names) == arguments.all:
        raise ConfigError("check needs a RUN or --all", "`art runs` lists the runs.")
    if arguments.older_than < 0:
        raise ConfigError(f"--older-than is a number of days, got {arguments.older_than}")
    prices = Prices(book=PriceBook(plugins))
    found = [
        checked
        for run in _runs(arguments, plugins)
        for checked in check_prices(run, prices, datetime.now(UTC).date(), arguments.older_than)
    ]
    rows = [_checked_row(checked) for checked in found]
    yield Table(name="prices", rows=rows, columns=_check_columns(), empty="nothing has a price")
    yield _sums(found, arguments.older_than)
    yield ExitStatus(int(any(checked.finding in OUTDATED for checked in found)))


def _runs(arguments: argparse.Namespace, plugins: Plugins) -> Iterable[LoggedRun]:
    base, taxonomy = runs_path(arguments.dir), plugins.taxonomy()
    if arguments.all:
        return find_runs(base, taxonomy)
    return [find_run(name, base, taxonomy) for name in arguments.names]


def _sums(found: Iterable[CheckedPrice], days: int) -> Record:
    found = list(found)
    count = {kind: sum(c.finding == kind for c in found) for kind in OUTDATED}
    booked = sum(c.receipt.usd or 0.0 for c in found)
    now = sum(c.now_usd or 0.0 for c in found)
    texts = [
        f"{counted(count['changed'], 'price')} changed: art reprice RUN computes the rows anew",
        f"{counted(count['old'], 'price')} of more than {days} days: art prices update",
        f"{counted(count['unpriced'], 'purchase')} without a price: art reprice RUN --prices FILE",
    ]
    kinds = ("changed", "old", "unpriced")
    lines = [text for text, kind in zip(texts, kinds, strict=True) if count[kind]]
    total = f"booked ${booked:.6f}, at the newest prices ${now:.6f}"
    values = {"booked_usd": booked, "now_usd": now, "outdated": sum(count.values())}
    return Record(values, ["", total, *(lines or ["every price still holds"])] if found else [])


def _checked_row(checked: CheckedPrice) -> dict[str, Any]:
    receipt = checked.receipt
    return {
        "run": checked.run,
        "item": checked.item,
        "path": receipt.leaf.removeprefix("costs/"),
        "calls": None if receipt.device_seconds else receipt.calls,
        "booked_usd": receipt.usd,
        "now_usd": checked.now_usd,
        "change": checked.change,
        "rates": {name: {"booked": a, "now": b} for name, (a, b) in checked.rates.items()},
        "booked_source": receipt.rates.get("source"),
        "as_of": checked.as_of,
        "finding": checked.finding or "ok",
    }


def _check_columns() -> tuple[Column, ...]:
    def changed(row: Mapping[str, Any]) -> str:
        return "-" if row["change"] is None else signed_percent(row["change"])

    def rates(row: Mapping[str, Any]) -> str:
        pairs = [
            f"{name.partition('_per_')[0]} {plain_price(p['booked'])} to {plain_price(p['now'])}"
            for name, p in row["rates"].items()
        ]
        return ", ".join(pairs)

    return (
        Column(key="run", rank=2),
        Column(key="item", whole=True),
        Column(key="path", heading="for", rank=1),
        usd_column("booked_usd", "booked $"),
        usd_column("now_usd", "now $"),
        Column(key="", heading="change", form=changed, right=True),
        Column(key="", heading="rates", form=rates, wrap=True, rank=3),
        Column(key="as_of", heading="as of"),
        Column(key="finding"),
    )


def plain_price(price: float | None) -> str:
    """Format a price without zeros at its end."""
    return "-" if price is None else format(price, ".10g")
