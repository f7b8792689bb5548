"""One run on the page: what it is, its costs, what it bought, its evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from art_board.library import Listed
from art_core.base.errors import settings_without_secrets
from art_core.reports.costs import item_name, read_costs
from art_core.reports.evaluations import read_evaluations
from art_core.reports.findings import read_findings

_PAID, _SIGNAL = "costs/cum/", "signal/cum/"


def overview(entry: Listed) -> dict[str, Any]:
    """Return a run's names, status, configuration and metrics: first, newest and best values."""
    run, place = entry.run, entry.place
    described = settings_without_secrets(run.model()) if entry.status != "unreadable" else {}
    metrics = place.summary.metrics if place else {}
    return {
        "id": entry.id,
        "run": run.name,
        "path": _place(run.path),
        "status": entry.status,
        "problem": entry.problem,
        "reason": entry.reason,
        "base_model": described.get("base_model"),
        "config": described.get("config") or {},
        "parents": [_parent(each) for each in run.parents()] if place else [],
        "rows": place.summary.rows if place else 0,
        "step": place.values.get("step") if place else None,
        "attempts": place.values.get("attempts") if place else None,
        "started": place.facts["started"] if place else "",
        "ended": place.facts["ended"] if place else "",
        "per_dollar": place.values.get("reward_per_dollar") if place else None,
        "metrics": {key: _metric(key, one, run.taxonomy) for key, one in sorted(metrics.items())},
        "costs": cost_tree(entry),
        "signal": signal_parts(entry),
    }


def _place(path: Path) -> str:
    """Return a path from the current directory on, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _parent(stored: dict[str, Any]) -> dict[str, Any]:
    return {"run": stored.get("run"), "step": stored.get("step")}


def _metric(key: str, one: Any, taxonomy: Any) -> dict[str, Any]:
    spec = taxonomy.spec(key)
    return {
        "first": one.first,
        "last": one.last,
        "best": one.best,
        "best_step": one.best_step,
        "unit": spec.unit,
        "help": spec.help,
        "direction": taxonomy.direction(key),
    }


def cost_tree(entry: Listed) -> list[dict[str, Any]]:
    """Return what a run cost in US dollars, as a tree in depth-first order: `path`, `name`,
    `depth`, `usd` and the `share` of the whole. Empty if nothing was paid.
    """
    metrics = entry.place.summary.metrics if entry.place else {}
    paid = {k.removeprefix(_PAID): m.last for k, m in metrics.items() if k.startswith(_PAID)}
    whole = paid.pop("all", None)
    if whole is None:
        return []
    rows = [{"path": "all", "name": "all", "depth": 0, "usd": whole, "share": 1.0}]
    for path in sorted(paid, key=lambda p: _by_size(p, paid)):
        share = paid[path] / whole if whole else None
        depth = path.count("/") + 1
        name = path.rpartition("/")[2]
        rows.append({"path": path, "name": name, "depth": depth, "usd": paid[path], "share": share})
    return rows


def signal_parts(entry: Listed) -> list[dict[str, Any]]:
    """Return what the dollars of a run bought, the largest part first: `name`, `usd`, `share`."""
    metrics = entry.place.summary.metrics if entry.place else {}
    keys = [key for key in metrics if key.startswith(_SIGNAL)]
    leaves = [key for key in keys if not any(other.startswith(f"{key}/") for other in keys)]
    paid = {key.removeprefix(_SIGNAL): metrics[key].last for key in leaves if metrics[key].last}
    whole = sum(paid.values())
    return [
        {"name": name, "usd": usd, "share": usd / whole if whole else None}
        for name, usd in sorted(paid.items(), key=lambda part: -part[1])
    ]


def findings(entry: Listed) -> list[dict[str, Any]]:
    """Return what the doctor finds in a run. Reads the log."""
    found = read_findings(entry.run).findings
    return [attrs.asdict(each) | {"heading": each.heading} for each in found]


def _by_size(path: str, paid: dict[str, float]) -> list[tuple[float, str]]:
    """Return the order of a branch: below its parent, the most expensive first."""
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return [(-paid.get(name, 0.0), name) for name in above]


def purchases(entry: Listed) -> dict[str, Any]:
    """Return what a run bought, the cost of a trained step and of the reward. Reads the log."""
    report = read_costs(entry.run)
    price = report.reward_price()
    return {
        "items": [
            {
                "item": item_name(r),
                "path": r.leaf.removeprefix("costs/"),
                "calls": r.calls,
                "tokens": r.input_tokens + r.output_tokens + r.train_tokens,
                "usd": r.usd,
            }
            for r in (*report.priced(), *report.unpriced())
        ],
        "unpriced_calls": report.unpriced_calls,
        "per_step": report.per_trained_step(report.total.get("all", 0.0)),
        "reward": None
        if price is None
        else attrs.asdict(price)
        | {"per_point_last": price.per_point_last, "per_point_best": price.per_point_best},
        "old_prices": report.old_prices,
    }


def evaluations(entry: Listed) -> list[dict[str, Any]]:
    """Return a run's evaluations with their intervals."""
    return [
        attrs.asdict(each) | {"pass_at": {str(k): v for k, v in each.pass_at.items()}}
        for each in read_evaluations(entry.run)
    ]
