"""`art reprice RUN`: a run's costs at today's prices, or at given ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_run
from art_core.cli.text import signed_percent, usd_column
from art_core.costs.builder import PriceBook
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.reports.costs import CostReport, item_name, read_costs
from art_core.reports.reprice import Prices, read_prices, reprice

_HELP = """\
The rows keep receipts of what was bought: tokens of calls, time of devices. They are priced again,
by FILE where it names the model or device, else by the installed price books. Costs that the
provider reported stay, so do prices that the run itself was given, and dollars without a receipt.
The result goes to repriced.csv beside the log, one line per row and leaf; the log is never changed.

FILE is JSON:
  {"models": {"openai/gpt-5": {"prompt_per_million": 1.25, "completion_per_million": 10}},
   "devices": {"NVIDIA H200": 2.5}}

examples:
  art reprice agent-001
  art reprice agent-001 --prices negotiated.json --gpu-usd-per-hour 1.99
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "reprice",
        help="compute a run's costs anew, from what it bought",
        epilog=_HELP,
    )
    add_run(parser)
    parser.add_argument("--prices", metavar="FILE", type=Path, help="prices to use, as JSON")
    parser.add_argument(
        "--gpu-usd-per-hour", metavar="X", type=float, help="the price of every device not in FILE"
    )
    parser.set_defaults(run=reprice_run)


def reprice_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the cost of each leaf at old and new prices, and the file with the rows."""
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    prices = _prices(arguments, PriceBook(plugins))
    out, sums = reprice(run, prices)
    rows = [_row(leaf, booked, new) for leaf, (booked, new) in sorted(sums.items())]
    rows.append(_row("all", *(sum(pair[i] for pair in sums.values()) for i in (0, 1))))
    columns = (
        Column(key="cost"),
        usd_column("booked_usd", "booked $"),
        usd_column("repriced_usd", "repriced $"),
        Column(key="", heading="change", form=_change, right=True),
    )
    yield Table(name="costs", rows=rows, columns=columns)
    report = read_costs(run)
    left = sorted({item_name(r) for r in report.unpriced() if prices.usd(r) is None})
    unmatched = prices.unmatched(report.bought.values())
    text = f"still without a price, and in no sum: {', '.join(left)}; give --prices FILE"
    lines = [*_unmatched(unmatched, report), *([text] if left else []), f"by row: {out}"]
    values = {"run": run.name, "unpriced": left, "unmatched": unmatched, "file": out}
    yield Record(values, lines)


def _unmatched(names: Sequence[str], report: CostReport) -> list[str]:
    """Return a line that names prices of models or devices that the run did not use."""
    if not names:
        return []
    bought = sorted({item_name(receipt) for receipt in report.bought.values()})
    known = ", ".join(bought) or "nothing with a receipt"
    return [f"prices that fit nothing here: {', '.join(names)}; the run bought: {known}"]


def _prices(arguments: argparse.Namespace, book: PriceBook) -> Prices:
    prices = read_prices(arguments.prices, book) if arguments.prices else Prices(book=book)
    hourly = arguments.gpu_usd_per_hour
    if hourly is None:
        return prices
    if not hourly >= 0:
        raise ConfigError(f"--gpu-usd-per-hour must be a price of at least 0, got {hourly}")
    return attrs.evolve(prices, devices={"": hourly, **prices.devices})


def _row(cost: str, booked: float, new: float) -> dict[str, Any]:
    change = new / booked - 1 if booked else None
    return {"cost": cost, "booked_usd": booked, "repriced_usd": new, "change": change}


def _change(row: Mapping[str, Any]) -> str:
    if row["change"] is None:
        return "new" if row["repriced_usd"] else "-"
    return signed_percent(row["change"])
