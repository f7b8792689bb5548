"""`art costs RUN --reconcile`: a run's estimated costs beside the bills of its services."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from art_core.backends import Bill
from art_core.base.errors import ConfigError
from art_core.cli.text import usd_column
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import LoggedRun
from art_core.reports.bills import BILLS, DatedBill, Scope, read_bill
from art_core.reports.costs import CostReport
from art_core.reports.reconcile import Estimates, compared, estimates_of


def reconciled(
    run: LoggedRun, report: CostReport, plugins: Plugins, scope: Scope
) -> Iterator[Output]:
    """Yield a table for each service that the run's receipts name. A service that fails is a note
    beside the bills of the others; ConfigError if all fail, or if the run used none.
    """
    used = {receipt.provider for receipt in report.bought.values()}
    specs = {name: spec for name, spec in plugins.backends().items() if spec.bill is not None}
    services = [*specs, *(name for name in BILLS if name not in specs)]
    requested = [name for name in services if name in used]
    if not requested:
        raise ConfigError(
            f"none of the services used by {run.name} reports its bill (used: "
            f"{', '.join(sorted(used - {''})) or 'none'}; services that do: {', '.join(services)})"
        )
    notes: list[str] = []
    problems: list[ConfigError] = []
    for name in requested:
        bill = specs[name].bill if name in specs else None
        try:
            table, lines = (
                _api_bill(name, run, scope)
                if bill is None
                else _beside_the_bill(name, run, report, bill(run.path))
            )
        except ConfigError as error:
            problems.append(error)
            if len(problems) == len(requested):
                raise
            lines = [str(error)]
        else:
            yield table
        notes += lines
        yield Record({"notes": notes}, lines)


def _beside_the_bill(
    service: str, run: LoggedRun, report: CostReport, bill: Bill
) -> tuple[Table, list[str]]:
    leaves = {
        r.leaf.removeprefix("costs/") for r in report.bought.values() if r.provider == service
    }
    estimates = {leaf: report.total.get(leaf, 0.0) for leaf in leaves}
    rows = [
        _row(service, leaf, estimates.get(leaf, 0.0), bill.usd.get(leaf, 0.0))
        for leaf in sorted(leaves | bill.usd.keys())
    ]
    rows.append(_row(service, "all", sum(estimates.values()), sum(bill.usd.values())))
    columns = (Column(key="path", heading=f"{run.name} at {service}"), *_dollars())
    return Table(name="bills", rows=rows, columns=columns), list(bill.notes)


def _api_bill(service: str, run: LoggedRun, scope: Scope) -> tuple[Table, list[str]]:
    """Return the bill of an API by day and model, and what is to be known about it."""
    today = datetime.now(UTC).date()
    estimates = estimates_of(run, service)
    bill = read_bill(service, estimates.days, scope)
    found = list(compared(service, estimates, bill, today))
    rows = [
        _row(service, one.model, one.estimate_usd, one.billed_usd)
        | {"day": one.day.isoformat(), "reason": one.reason}
        for one in found
    ]
    sums = [sum(getattr(one, key) for one in found) for key in ("estimate_usd", "billed_usd")]
    rows.append(_row(service, "all", *sums))
    columns = (
        Column(key="path", heading=f"{run.name} at {service}"),
        Column(key="day", heading="day, UTC", missing=""),
        *_dollars(),
        Column(key="reason", wrap=True, rank=1),
    )
    notes = list(_notes(service, estimates, bill, scope, today))
    return Table(name="bills", rows=rows, columns=columns), notes


def _notes(
    service: str, estimates: Estimates, bill: DatedBill, scope: Scope, today: date
) -> Iterator[str]:
    limits = [f"project {name}" for name in scope.projects] + [f"key {name}" for name in scope.keys]
    yield (
        f"billed is all use of {' and '.join(limits)}, also by other programs"
        if limits
        else f"billed is all use of the organization at {service}, also by other programs: "
        "--bill-project ID or --bill-key ID limit it"
    )
    if today in estimates.days:
        yield f"{today} is not complete: ask again after midnight UTC"
    if estimates.over_midnight:
        rows = f"rows that began before midnight UTC: {estimates.over_midnight}"
        yield f"{rows}; all their calls count on the day of the row"
    others = {model for _, model in bill.uses} - estimates.models
    usd = sum(use.usd for (_, model), use in bill.uses.items() if model in others)
    if usd:
        names = sorted(model for model in others)
        yield f"${usd:.6f} of the bill is of other items on these days: {', '.join(names)}"
    for (day, currency), amount in sorted(bill.foreign.items()):
        yield f"{amount:f} {currency} of {day} are in no sum: estimates are in US dollars"


def _dollars() -> tuple[Column, ...]:
    return (
        usd_column("estimate_usd", "estimate $"),
        usd_column("billed_usd", "billed $"),
        Column(key="difference_usd", heading="difference", form="+.6f", right=True),
    )


def _row(service: str, path: str, estimate: float, billed: float) -> dict[str, Any]:
    row = {"service": service, "path": path, "estimate_usd": estimate, "billed_usd": billed}
    return row | {"difference_usd": billed - estimate, "day": None, "reason": ""}
