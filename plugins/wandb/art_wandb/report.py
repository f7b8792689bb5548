"""A W&B report of a run's costs, made with wandb-workspaces: the tree of costs and the purchases as
tables, and curves of the run that the sink sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.reports.v2.internal import ReportViewspec

from art_core import LoggedRun, Receipt
from art_core.reports.costs import CostReport, item_name, read_costs
from art_wandb.sink import STEP

_MAX_TITLE = 128
_INDENT = "\u2003"


@attrs.frozen(kw_only=True)
class Shown:
    """The W&B run that a report shows: its project, entity (None is the user's own) and id."""

    project: str
    entity: str | None
    id: str


def cost_report(run: LoggedRun, shown: Shown) -> wr.Report:
    """Return the report of a run's costs, which is not saved yet.

    Without an entity, wandb asks W&B for the user's.
    """
    costs = read_costs(run)
    where = {} if shown.entity is None else {"entity": shown.entity}
    return wr.Report(
        project=shown.project,
        **where,
        title=f"Costs of {run.name}"[:_MAX_TITLE],
        description="Written by `art wandb report`.",
        width="fixed",
        blocks=list(_blocks(run, costs, shown)),
    )


def spec_of(report: wr.Report) -> dict[str, Any]:
    """Return a report as the JSON that W&B stores, which the library has read back."""
    text = report._to_model().model_dump_json(by_alias=True, exclude_none=True)  # noqa: SLF001
    spec: dict[str, Any] = json.loads(text)
    ReportViewspec.model_validate(spec)
    return spec


def _blocks(run: LoggedRun, costs: CostReport, shown: Shown) -> Iterator[Any]:
    yield wr.MarkdownBlock(text="\n\n".join(_summary(costs)))
    yield wr.H2(text="Where the money went")
    yield wr.MarkdownBlock(text=tree_table(costs))
    yield wr.H2(text="Costs and reward")
    yield wr.PanelGrid(
        runsets=[wr.Runset(name=run.name[:_MAX_TITLE], filters=f"ID = '{shown.id}'")],
        panels=_panels(costs),
    )
    yield wr.H2(text="What was bought")
    yield wr.MarkdownBlock(text=receipt_table(costs.priced()))
    if unpriced := costs.unpriced():
        yield wr.H2(text="Without a price")
        yield wr.MarkdownBlock(text="These purchases are in no cost above.")
        yield wr.MarkdownBlock(text=receipt_table(unpriced))


def _panels(costs: CostReport) -> list[Any]:
    step, dollars = wr.Metric(STEP), wr.Metric("costs/cum/all")
    price = costs.reward_price()
    reward = wr.Metric("reward/mean" if price is None else price.key)
    heads = [path for path in costs.total if "/" not in path and path != "all"]
    places = [wr.Layout(x=x, y=y, w=12, h=8) for y in (0, 8) for x in (0, 12)]
    plots: list[dict[str, Any]] = [
        {"title": "Dollars so far", "x": step, "y": [dollars]},
        {
            "title": "Dollars of a step",
            "x": step,
            "y": [wr.Metric(f"costs/{head}") for head in sorted(heads)] or [wr.Metric("costs/all")],
            "plot_type": "stacked-area",
        },
        {"title": "Reward over dollars", "x": dollars, "y": [reward], "title_x": "dollars"},
        {"title": "Reward over steps", "x": step, "y": [reward]},
    ]
    return [wr.LinePlot(layout=at, **plot) for at, plot in zip(places, plots, strict=True)]


def _summary(costs: CostReport) -> Iterator[str]:
    spent = costs.total.get("all")
    if spent is None:
        yield "No costs were recorded."
        return
    steps = len(costs.trained)
    a_step = costs.per_trained_step(spent)
    each = "" if a_step is None else f", ${a_step:.6f} a step"
    yield f"**${spent:.6f}** for {steps} trained steps{each}."
    price = costs.reward_price()
    if price is None:
        return
    yield f"`{price.key}`: first {price.first:.4g}, newest {price.last:.4g}, best {price.best:.4g}."
    if price.per_point_last is not None:
        yield f"One point of reward cost **${price.per_point_last:.6g}**, up to the newest value."
    if costs.unpriced_calls:
        yield f"{costs.unpriced_calls:g} calls have no price, and are in no cost."


def tree_table(costs: CostReport) -> str:
    """Return the tree of costs as a table in Markdown."""
    whole = costs.total.get("all", 0.0)
    rows = []
    for depth, path in [(0, "all"), *_branches(costs.total, "", 1)]:
        usd = costs.total.get(path, 0.0)
        a_step = costs.per_trained_step(usd)
        share = f"{usd / whole:.0%}" if whole else "-"
        name = _INDENT * depth + path.rpartition("/")[2]
        rows.append([name, f"{usd:.6f}", share, "-" if a_step is None else f"{a_step:.6f}"])
    return table(["cost", "$", "share", "$ a step"], rows)


def _branches(total: Mapping[str, float], parent: str, depth: int) -> Iterator[tuple[int, str]]:
    """Yield the paths below a parent with their depths, the most expensive first."""
    below = [path for path in total if path.rpartition("/")[0] == parent and path != "all"]
    for path in sorted(below, key=lambda path: (-total[path], path)):
        yield depth, path
        yield from _branches(total, path, depth + 1)


def receipt_table(receipts: Iterable[Receipt]) -> str:
    """Return purchases as a table in Markdown."""
    rows = []
    for receipt in receipts:
        timed = bool(receipt.device_seconds)
        used = [receipt.calls, receipt.input_tokens + receipt.train_tokens, receipt.output_tokens]
        rows.append(
            [
                item_name(receipt),
                receipt.leaf.removeprefix("costs/"),
                *(["", "", ""] if timed else map(str, used)),
                f"{receipt.device_seconds / 3600:.4f}" if timed else "",
                "-" if receipt.usd is None else f"{receipt.usd:.6f}",
                str(receipt.rates.get("source") or ("the provider" if receipt.reported else "")),
            ]
        )
    if not rows:
        return "No purchases were recorded."
    titles = ["bought", "for", "calls", "tokens in", "tokens out", "hours", "$", "price of"]
    return table(titles, rows)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split("\n")).replace("|", "\\|")
