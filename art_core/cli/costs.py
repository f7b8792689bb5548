"""`art costs RUN`: the cost tree of a run, its purchases and the cost of a point of reward."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_run
from art_core.cli.reconcile import reconciled
from art_core.cli.text import SHARE, branches, budget_line, counted, usd_column
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.metrics.receipt import Receipt
from art_core.prices.tables import OLD_AFTER_DAYS
from art_core.reports.bills import Scope
from art_core.reports.costs import CostReport, RewardPrice, item_name, read_costs

_HELP = """\
The tree holds the whole run with all attempts, also what abandoned steps spent. "$ a step" divides
it by the steps that were trained; an evaluation of the base model at step 0 is not one of them. A
step counts all its rows: training, evaluations, repetitions. Calls without a known price are in no
cost: they are listed with their tokens; `art reprice RUN` prices them. With --reconcile the
services that the run paid by the token are asked what they billed: backends such as tinker, and
OpenAI and Anthropic with an admin key in OPENAI_ADMIN_KEY or ANTHROPIC_ADMIN_KEY.

examples:
  art costs agent-001
  art costs agent-001 --step 12
  art costs agent-001 --per-step
  art costs agent-001 --reconcile
  art costs agent-001 --reconcile --bill-project proj_abc
  art costs agent-001 --json | jq '.costs[] | select(.path == "all").usd'
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "costs",
        help="show where a run's money went",
        epilog=_HELP,
    )
    add_run(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", metavar="N", type=int, help="the tree of one step")
    which.add_argument("--per-step", action="store_true", help="one row per step")
    which.add_argument("--reconcile", action="store_true", help="beside what the services billed")
    for name, what in (("project", "a project or workspace"), ("key", "a key")):
        parser.add_argument(
            f"--bill-{name}",
            metavar="ID",
            action="append",
            default=[],
            help=f"with --reconcile: only the bill of {what}, by its id",
        )
    parser.set_defaults(run=show_costs)


def show_costs(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the cost tree or one row per step, then the purchases and the cost of the reward."""
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    report = read_costs(run)
    scope = Scope(projects=tuple(arguments.bill_project), keys=tuple(arguments.bill_key))
    if scope != Scope() and not arguments.reconcile:
        raise ConfigError("--bill-project and --bill-key need --reconcile")
    yield Record({"run": run.name, "training_steps": len(report.trained)})
    yield budget_line(run.path)
    if arguments.step is not None:
        yield from _one_step(report, arguments.step)
    elif arguments.per_step:
        yield _per_step(report)
    elif arguments.reconcile:
        yield from reconciled(run, report, plugins, scope)
    else:
        yield _tree(f"costs of {run.name}", report.total, _a_step(report))
        yield from _bought(report)
        yield from _unpriced(report)
        yield from _partly_priced(report)
        yield _old_prices(report)
        yield from _reward(report.reward_price() if "all" in report.total else None)


def _a_step(report: CostReport) -> tuple[Column, Mapping[str, float | None]]:
    """Return the column of the average cost of a trained step, and its values by path."""
    column = usd_column("usd_per_step", "$ a step")
    return column, {path: report.per_trained_step(usd) for path, usd in report.total.items()}


def _tree(
    title: str,
    costs: Mapping[str, float],
    beside: tuple[Column, Mapping[str, float | None]],
    empty: str = "no costs were recorded",
) -> Table:
    """Return a cost tree with another column of values by path beside it."""
    column, others = beside
    whole = costs.get("all")
    known = {path: usd for path, usd in costs.items() if path != "all"}
    labels = {"all": "all"} | {
        path: lines + path.rpartition("/")[2] for path, lines in branches(known)
    }
    rows = [
        {
            "path": path,
            "usd": costs[path],
            "share": costs[path] / whole if whole else None,
            column.key: others.get(path),
        }
        for path in labels
        if whole is not None
    ]
    path_column = Column(key="path", heading=title, form=labels.__getitem__)
    columns = (path_column, usd_column("usd", "$"), SHARE, column)
    return Table(name="costs", rows=rows, columns=columns, empty=empty)


def _one_step(report: CostReport, step: int) -> Iterator[Output]:
    if step not in report.steps:
        known = f"{min(report.steps)} to {max(report.steps)}" if report.steps else "none"
        raise ConfigError(f"no row of step {step}; logged: {known}")
    costs = report.steps[step]
    of_run = {path: report.total.get(path, 0.0) for path in costs}
    beside = usd_column("usd_of_run", "$ the run"), of_run
    yield Record({"step": step})
    yield _tree(f"costs of step {step}", costs, beside, f"step {step} cost nothing")


def _per_step(report: CostReport) -> Table:
    paths = {path for costs in report.steps.values() for path in costs}
    heads = sorted(path for path in paths if path and "/" not in path and path != "all")
    rows: list[dict[str, Any]] = []
    so_far = 0.0
    for step, costs in sorted(report.steps.items()):
        so_far += costs.get("all", 0.0)
        row = {"step": step, "trained": step in report.trained, "usd": costs.get("all", 0.0)}
        rows.append(row | {"usd_so_far": so_far, "costs": costs})
    columns = [
        Column(key="step", right=True),
        usd_column("usd", "$"),
        usd_column("usd_so_far", "$ so far"),
        *(
            Column(key="costs", heading=head, form=_branch(head), right=True, rank=n)
            for n, head in enumerate(heads, 1)
        ),
    ]
    return Table(name="steps", rows=rows, columns=columns, empty="no rows yet")


def _branch(path: str) -> Callable[[Mapping[str, float]], str]:
    return lambda costs: format(costs.get(path, 0.0), ".6f")


def _bought(report: CostReport) -> Iterator[Output]:
    rows = [
        _item(receipt)
        | {"usd": receipt.usd, "reported": receipt.reported, "rates": receipt.rates}
        | {"price": _rates(receipt), "source": receipt.rates.get("source")}
        | {"as_of": receipt.rates.get("as_of")}
        for receipt in report.priced()
    ]
    columns = (
        *_item_columns("bought"),
        usd_column("usd", "$"),
        Column(key="price", wrap=True, rank=2),
        Column(key="source", form=str, wrap=True, rank=3),
    )
    if rows:
        yield ""
    yield Table(name="bought", rows=rows, columns=columns)


def _unpriced(report: CostReport) -> Iterator[Output]:
    rows = [_item(receipt) for receipt in report.unpriced()]
    calls = report.unpriced_calls
    if rows or calls:
        yield ""
    yield Table(name="unpriced", rows=rows, columns=_item_columns("unpriced"))
    text = "these are in no cost above: art reprice RUN --prices FILE.json prices them"
    if not rows:
        text = f"{counted(calls, 'unpriced call')} {'is' if calls == 1 else 'are'} in no cost above"
    yield Record({"unpriced_calls": calls}, [text] if rows or calls else [])
    unread = report.unread_receipts
    text = f"{counted(unread, 'receipt')} can't be read: not among what was bought"
    yield Record({"unread_receipts": unread}, [text] if unread else [])


def _partly_priced(report: CostReport) -> Iterator[Output]:
    rows = [_item(receipt) | {"not_priced": receipt.unread} for receipt in report.partly_priced()]
    calls = report.partly_priced_calls
    if rows:
        yield ""
    column = Column(key="not_priced", heading="billed too", form=", ".join, wrap=True)
    columns = (*_item_columns("partly priced"), column)
    yield Table(name="partly_priced", rows=rows, columns=columns)
    text = f"{counted(calls, 'call')} cost more than is in the sums above"
    yield Record({"partly_priced_calls": calls}, [text] if calls else [])


def _old_prices(report: CostReport) -> Record:
    names = [f"{name} ({as_of})" for name, as_of in sorted(report.old_prices.items())]
    text = (
        f"prices of lists that were more than {OLD_AFTER_DAYS} days old: {', '.join(names)}. "
        "art prices update reads new ones of hosted training; give your own price of a device"
    )
    return Record({"old_prices": report.old_prices}, ["", text] if names else [])


def _item(receipt: Receipt) -> dict[str, Any]:
    timed = bool(receipt.device_seconds)
    return {
        "item": item_name(receipt),
        "tier": receipt.tier,
        "speed": receipt.speed,
        "geography": receipt.geography,
        "path": receipt.leaf.removeprefix("costs/"),
        "calls": None if timed else receipt.calls,
        "input_tokens": None if timed else receipt.input_tokens + receipt.train_tokens,
        "output_tokens": None if timed else receipt.output_tokens,
        "hours": receipt.device_seconds / 3600 if timed else None,
    }


def _item_columns(title: str) -> tuple[Column, ...]:
    def named(row: Mapping[str, Any]) -> str:
        terms = [row[name] for name in ("tier", "speed", "geography") if row[name]]
        return f"{row['item']} ({', '.join(terms)})" if terms else str(row["item"])

    return (
        Column(key="", heading=title, form=named),
        Column(key="path", heading="for"),
        Column(key="calls", missing="", right=True, rank=1),
        Column(key="input_tokens", heading="tokens in", missing="", right=True),
        Column(key="output_tokens", heading="out", missing="", right=True),
        Column(key="hours", form=".4f", missing="", right=True),
    )


def _rates(receipt: Receipt) -> str:
    if receipt.reported:
        return "named by the provider"
    rates = {name: usd for name, usd in receipt.rates.items() if isinstance(usd, (int, float))}
    if "usd_per_hour" in rates:
        return f"{rates['usd_per_hour']:g} an hour"
    a_million = [(k, v) for k, v in rates.items() if k.endswith("_per_million")]
    text = ", ".join(f"{k.removesuffix('_per_million')} {v:g}" for k, v in a_million) + " a million"
    search = rates.get("web_search_per_thousand") if receipt.web_searches else None
    return text if search is None else f"{text}, {search / 1e3:g} a web search"


def _reward(price: RewardPrice | None) -> Iterator[Output]:
    values = None
    if price is not None:
        values = attrs.asdict(price) | {
            "usd_per_point_last": price.per_point_last,
            "usd_per_point_best": price.per_point_best,
        }
    yield Record({"reward": values}, ["", *_reward_lines(price)] if price else [])


def _reward_lines(price: RewardPrice) -> Iterable[str]:
    yield f"{price.key}: first {price.first:.4g}, newest {price.last:.4g}, best {price.best:.4g}"
    yield _per_point("newest", price, price.last, price.per_point_last)
    if price.best != price.last:
        yield _per_point("best", price, price.best, price.per_point_best)


def _per_point(name: str, price: RewardPrice, value: float, per_point: float | None) -> str:
    if per_point is None:
        return f"reward did not improve between the first and the {name} value"
    how = f"{price.spent:.6g} / ({value:.4g} - {price.first:.4g})"
    return (
        f"one point of reward cost ${per_point:.6g}: all costs / (the {name} - the first) = {how}"
    )
