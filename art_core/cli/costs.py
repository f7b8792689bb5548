"""`art costs RUN`: where the money went, what it bought, what a point of reward cost."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from art_core.cli.reconcile import reconciled
from art_core.cli.runs import add_directory
from art_core.cli.show import branches, share, usd
from art_core.cli.table import table
from art_core.costs.receipt import Receipt
from art_core.errors import ConfigError
from art_core.plugins.host import Plugins
from art_core.reports.costs import CostReport, RewardPrice, read_costs
from art_core.rundir import find_run, runs_path

_HELP = """\
The tree holds the whole run with all attempts, also what abandoned steps spent. A step counts all
its rows: training, evaluations, repetitions. Calls without a known price are in no cost: they are
listed with their tokens; `art reprice RUN` prices them. With --reconcile the services that the
run paid by the token are asked what they billed.

examples:
  art costs agent-001
  art costs agent-001 --step 12
  art costs agent-001 --per-step
  art costs agent-001 --reconcile
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "costs",
        help="show where a run's money went",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="RUN", help="a run's name, project/name or directory")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", metavar="N", type=int, help="the tree of one step")
    which.add_argument("--per-step", action="store_true", help="a line a step")
    which.add_argument(
        "--reconcile", action="store_true", help="beside what the services say they billed"
    )
    add_directory(parser)
    parser.set_defaults(run=show_costs)


def show_costs(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield the tree, or a line a step; then what was bought and what the reward cost."""
    run = find_run(arguments.name, runs_path(arguments.dir))
    report = read_costs(run.history, plugins.taxonomy())
    if arguments.step is not None:
        yield from _one_step(report, arguments.step)
    elif arguments.per_step:
        yield from _per_step(report)
    elif arguments.reconcile:
        yield from reconciled(run, report, plugins)
    elif "all" not in report.total:
        yield "no costs were recorded"
        yield from _section(_unpriced(report))
    else:
        yield from _tree(f"costs of {run.name}", report.total, report.total, len(report.steps))
        yield from _section(_bought(report))
        yield from _section(_unpriced(report))
        yield from _section(_reward(report.reward_price()))


def _section(lines: Iterator[str]) -> Iterator[str]:
    written = list(lines)
    if written:
        yield ""
        yield from written


def _tree(
    title: str, costs: Mapping[str, float], run: Mapping[str, float], steps: int
) -> Iterator[str]:
    """Yield a cost tree; over a run with what a step cost on average, in a step with the run's."""
    whole = costs["all"]
    known = {path: value for path, value in costs.items() if path != "all"}

    def cells(path: str) -> tuple[str, str, str]:
        other = costs[path] / steps if costs is run else run.get(path, 0.0)
        return usd(costs[path]), share(costs[path], whole), usd(other)

    rows = [(path.rpartition("/")[2], lines, cells(path)) for path, lines in branches(known)]
    named = [("all", *cells("all")), *((lines + name, *numbers) for name, lines, numbers in rows)]
    headings = (title, "$", "share", "$ a step" if costs is run else "$ the run")
    yield from table(headings, named, right=set(headings[1:]))


def _one_step(report: CostReport, step: int) -> Iterator[str]:
    if step not in report.steps:
        known = f"{min(report.steps)} to {max(report.steps)}" if report.steps else "none"
        raise ConfigError(f"no row of step {step}; logged: {known}")
    costs = report.steps[step]
    if "all" not in costs:
        yield f"step {step} cost nothing"
        return
    yield from _tree(f"costs of step {step}", costs, report.total, len(report.steps))


def _per_step(report: CostReport) -> Iterator[str]:
    heads = sorted({p for costs in report.steps.values() for p in costs if "/" not in p} - {"all"})
    headings = ("step", "$", "$ so far", *heads)
    rows: list[tuple[str, ...]] = []
    so_far = 0.0
    for step, costs in sorted(report.steps.items()):
        so_far += costs.get("all", 0.0)
        cells = (usd(costs.get(branch, 0.0)) for branch in heads)
        rows.append((str(step), usd(costs.get("all", 0.0)), usd(so_far), *cells))
    return table(headings, rows, right=set(headings))


def _bought(report: CostReport) -> Iterator[str]:
    rows = [(*_item(r), usd(r.usd or 0.0), _rates(r), _source(r)) for r in report.priced()]
    headings = ("bought", "for", "calls", "tokens in", "out", "hours", "$", "price", "source")
    return table(headings, rows, right=set(headings[2:7])) if rows else iter(())


def _unpriced(report: CostReport) -> Iterator[str]:
    rows = [_item(receipt) for receipt in report.unpriced()]
    headings = ("unpriced", "for", "calls", "tokens in", "out", "hours")
    if rows:
        yield from table(headings, rows, right=set(headings[2:]))
        yield "these are in no cost above: art reprice RUN --prices FILE.json prices them"
    elif report.unpriced_calls:
        yield f"{report.unpriced_calls:.0f} unpriced calls are in no cost above"


def _item(receipt: Receipt) -> tuple[str, ...]:
    name = f"{receipt.provider}/{receipt.item}".lstrip("/")
    name += f" ({receipt.tier})" if receipt.tier else ""
    cost = receipt.leaf.removeprefix("costs/")
    if receipt.device_seconds:
        return (name, cost, "", "", "", format(receipt.device_seconds / 3600, ".4f"))
    read = receipt.input_tokens + receipt.train_tokens
    return (name, cost, str(receipt.calls), str(read), str(receipt.output_tokens), "")


def _rates(receipt: Receipt) -> str:
    if receipt.reported:
        return "named by the provider"
    if "usd_per_hour" in receipt.rates:
        return f"{receipt.rates['usd_per_hour']:g} an hour"
    a_million = [(k, v) for k, v in receipt.rates.items() if k.endswith("_per_million")]
    told = ", ".join(f"{k.removesuffix('_per_million')} {v:g}" for k, v in a_million) + " a million"
    search = receipt.rates.get("web_search_per_thousand") if receipt.web_searches else None
    return told if search is None else f"{told}, {search / 1e3:g} a web search"


def _source(receipt: Receipt) -> str:
    return str(receipt.rates.get("source", "-"))


def _reward(price: RewardPrice | None) -> Iterator[str]:
    if price is None:
        return
    yield f"{price.key}: first {price.first:.4g}, newest {price.last:.4g}, best {price.best:.4g}"
    yield from _per_point("newest", price, price.last, price.per_point_last)
    if price.best != price.last:
        yield from _per_point("best", price, price.best, price.per_point_best)


def _per_point(
    name: str, price: RewardPrice, value: float, per_point: float | None
) -> Iterator[str]:
    if per_point is None:
        yield f"no reward was gained from the first to the {name} value"
        return
    how = f"{price.spent:.6g} / ({value:.4g} - {price.first:.4g})"
    yield f"one point of reward cost ${per_point:.6g}: all costs / (the {name} - the first) = {how}"
