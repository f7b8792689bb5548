"""`art costs RUN --reconcile`: a run's estimated costs beside the bills of its services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from art_core.backends import Bill
from art_core.base.errors import ConfigError
from art_core.cli.text import usd_column
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import LoggedRun
from art_core.reports.costs import CostReport


def reconciled(run: LoggedRun, report: CostReport, plugins: Plugins) -> Iterator[Output]:
    """Yield a table for each service that the run's receipts name; ConfigError without any."""
    used = {receipt.provider for receipt in report.bought.values()}
    specs = [s for s in plugins.backends().values() if s.bill is not None]
    requested = [spec for spec in specs if spec.name in used]
    if not requested:
        raise ConfigError(
            f"none of the services used by {run.name} reports its bill (used: "
            f"{', '.join(sorted(used - {''})) or 'none'}; services that do: "
            f"{', '.join(spec.name for spec in specs) or 'none is installed'})"
        )
    notes: list[str] = []
    for spec in requested:
        assert spec.bill is not None
        bill = spec.bill(run.path)
        notes += bill.notes
        yield _beside_the_bill(spec.name, run, report, bill)
        yield Record({"notes": notes}, bill.notes)


def _beside_the_bill(service: str, run: LoggedRun, report: CostReport, bill: Bill) -> Table:
    leaves = {
        r.leaf.removeprefix("costs/") for r in report.bought.values() if r.provider == service
    }
    estimates = {leaf: report.total.get(leaf, 0.0) for leaf in leaves}
    rows = [
        _row(service, leaf, estimates.get(leaf, 0.0), bill.usd.get(leaf, 0.0))
        for leaf in sorted(leaves | bill.usd.keys())
    ]
    rows.append(_row(service, "all", sum(estimates.values()), sum(bill.usd.values())))
    columns = (
        Column(key="path", heading=f"{run.name} at {service}"),
        usd_column("estimate_usd", "estimate $"),
        usd_column("billed_usd", "billed $"),
        Column(key="difference_usd", heading="difference", form="+.6f", right=True),
    )
    return Table(name="bills", rows=rows, columns=columns)


def _row(service: str, path: str, estimate: float, billed: float) -> dict[str, Any]:
    row = {"service": service, "path": path, "estimate_usd": estimate, "billed_usd": billed}
    return row | {"difference_usd": billed - estimate}
