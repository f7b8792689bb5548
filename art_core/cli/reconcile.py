"""`art costs RUN --reconcile`: what a run estimated, beside what its services say they billed."""

from __future__ import annotations

from collections.abc import Iterator

from art_core.backends import BackendSpec
from art_core.cli.show import usd
from art_core.cli.table import table
from art_core.errors import ConfigError
from art_core.plugins.host import Plugins
from art_core.reports.costs import CostReport
from art_core.rundir import FoundRun


def reconciled(run: FoundRun, report: CostReport, plugins: Plugins) -> Iterator[str]:
    """Yield a table for each service that the run's receipts name; ConfigError without any."""
    used = {receipt.provider for receipt in report.bought.values()}
    specs = [s for s in plugins.backends().values() if s.bill is not None]
    asked = [spec for spec in specs if spec.name in used]
    if not asked:
        raise ConfigError(
            f"no service that {run.name} paid tells what it billed; it paid: "
            f"{', '.join(sorted(used - {''})) or 'none'}; those that tell: "
            f"{', '.join(spec.name for spec in specs) or 'none is installed'}"
        )
    for spec in asked:
        yield from _beside_the_bill(spec, run, report)


def _beside_the_bill(spec: BackendSpec, run: FoundRun, report: CostReport) -> Iterator[str]:
    assert spec.bill is not None
    bill = spec.bill(run.path)
    leaves = {
        r.leaf.removeprefix("costs/") for r in report.bought.values() if r.provider == spec.name
    }
    estimates = {leaf: report.total.get(leaf, 0.0) for leaf in leaves}
    rows = [
        _row(leaf, estimates.get(leaf, 0.0), bill.usd.get(leaf, 0.0))
        for leaf in sorted(leaves | bill.usd.keys())
    ]
    whole = _row("all", sum(estimates.values()), sum(bill.usd.values()))
    headings = (f"{run.name} at {spec.name}", "estimate $", "billed $", "difference")
    yield from table(headings, [*rows, whole], right=set(headings[1:]))
    yield from bill.notes


def _row(name: str, estimate: float, billed: float) -> tuple[str, ...]:
    return name, usd(estimate), usd(billed), f"{billed - estimate:+.6f}"
