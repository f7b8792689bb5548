"""`art show RUN`: a run's main curves as sparklines, and its cost tree."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from art_core.cli.arguments import add_run
from art_core.cli.attempts import add_attempts, show_attempts
from art_core.cli.sparkline import sparkline
from art_core.cli.text import SHARE, branches, budget_line, counted, usd_column
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rows import attempt_of
from art_core.log.rundir import runs_path
from art_core.log.timeline import Timeline
from art_core.metrics.signal import LEARNED, WASTES
from art_core.metrics.taxonomy import builtin_taxonomy

_HELP = """\
RUN is a name, project/name, or a run's directory. Curves read left to right, one bar per step (or
the mean of neighbours, if there are many steps). Metrics of your own are below those of the core.
The cost tree is that of the whole run, all attempts.

examples:
  art show agent-001
  art show agent-001 --attempts --worst
  art show agent-001 --attempts --step 12 --scenario q3
  art show demo/agent-001 --dir /data/.art
  art show .art/demo/models/agent-001
  art show agent-001 --json | jq '.curves[] | select(.key == "reward/mean").values'
"""
_BARS = 24
_CURVES = (
    ("reward", "reward/mean"),
    ("reward std", "reward/std_dev"),
    ("failed", "reward/exception_rate"),
    ("val reward", "val/reward"),
    ("test reward", "test/reward"),
    ("loss", "loss/train"),
    ("entropy", "loss/entropy"),
    ("grad norm", "loss/grad_norm"),
    ("seconds", "time/step_wall_s"),
    ("$ so far", "costs/cum/all"),
)
_CURVE_COLUMNS = (
    Column(key="label", heading="curve"),
    Column(key="values", heading="", form=lambda values: sparkline(values, _BARS)),
    *(Column(key=end, form=".4g", right=True) for end in ("first", "last", "low", "high")),
)
_SPEEDS = (
    ("actor tok/s", "data/step_actor_tokens", "time/step_actor_s"),
    ("trainer tok/s", "data/step_trainer_tokens", "time/step_trainer_s"),
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="show a run: curves and cost tree, or attempts",
        epilog=_HELP,
    )
    add_run(parser)
    add_attempts(parser)
    parser.set_defaults(run=show_run)


def show_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield a heading, the curves and the cost tree."""
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    if arguments.attempts:
        yield from show_attempts(run, arguments)
        return
    reading = run.timeline()
    state = run.state()
    remarks = {"problem": state.problem, "reason": state.reason}
    yield Record(
        {"run": run.name, "status": state.status, "path": run.path, **remarks},
        [f"{run.name}  {state.status}  {run.path}", *filter(None, remarks.values())],
    )
    yield Record({"parents": (parents := run.parents())}, map(_ancestry, parents))
    yield _extent(reading)
    yield from signal_line(reading)
    yield budget_line(run.path)
    if reading.last is not None:
        yield ""
    yield curve_table(reading)
    if reading.last is not None:
        yield ""
    yield cost_table(reading)


def _ancestry(parent: Mapping[str, Any]) -> str:
    usd = parent["costs"].get("all", 0.0)
    place = f"from {parent['run']} at step {parent['step']}"
    return f"{place}, which had cost ${usd:,.4f} (not counted here)"


def _extent(reading: Timeline) -> Record:
    last = reading.last
    if last is None:
        return Record({"step": None, "rows": 0, "attempts": 0}, ["no rows yet"])
    attempts = max(attempt_of(last), 1)
    step = reading.furthest_step
    text = f"step {step}, {counted(reading.rows, 'row')}, attempt {attempts}"
    return Record({"step": step, "rows": reading.rows, "attempts": attempts}, [text])


def signal_line(reading: Timeline) -> Iterator[Record]:
    """Yield which share of a run's dollars taught, and the largest waste."""
    parts = {
        key.removeprefix("signal/cum/"): usd
        for key, usd in reading.totals.items()
        if key.startswith("signal/cum/")
    }
    whole = sum(parts.values())
    if not whole:
        return
    share = parts.get(LEARNED, 0.0) / whole
    wasted = {part: usd for part in WASTES if (usd := parts.get(part, 0.0))}
    worst = max(wasted, key=lambda part: wasted[part], default=None)
    digits = 2 if whole >= 1 else 4
    text = f"{share:.0%} of ${whole:,.{digits}f} taught".replace("%", " %")
    if worst is not None:
        name = worst.removeprefix("wasted/").replace("_", " ")
        text += f"; the largest waste: {name}, ${wasted[worst]:,.{digits}f}"
    yield Record({"signal": parts, "taught": share, "largest_waste": worst}, [text])


def curve_table(reading: Timeline) -> Table:
    """Return the logged curves, with the user's own metrics last."""
    trained = reading.trained
    spent = {step: usd for step, usd in reading.curve("costs/all").items() if step in trained}
    curves: list[tuple[str, str | None, dict[int, float]]] = [
        (label, key, reading.curve(key)) for label, key in _CURVES
    ]
    curves.append(("$ a step", None, spent))
    curves += [(label, None, _speed(reading, *keys)) for label, *keys in _SPEEDS]
    curves += [(key, key, reading.curve(key)) for key in own_metrics(reading)]
    return Table(
        name="curves",
        rows=[_curve(*named) for named in curves if named[2]],
        columns=_CURVE_COLUMNS,
        empty="no metric was logged" if reading.rows else "",
    )


def own_metrics(reading: Timeline) -> list[str]:
    """Return the logged keys that are not in the core's catalogue, without sums and costs: metrics
    of trajectories, the user and plugins.
    """
    known = builtin_taxonomy().specs
    return sorted(
        key
        for key in reading.curves()
        if key not in known and "/cum/" not in key and not key.startswith("costs/")
    )


def _curve(label: str, key: str | None, points: dict[int, float]) -> dict[str, Any]:
    values = list(points.values())
    row = {"label": label, "key": key, "steps": list(points), "values": values}
    ends = {"first": values[0], "last": values[-1], "low": min(values), "high": max(values)}
    return row | ends


def _speed(reading: Timeline, tokens: str, seconds: str) -> dict[int, float]:
    time = reading.curve(seconds)
    return {s: n / time[s] for s, n in reading.curve(tokens).items() if time.get(s, 0.0) > 0}


def cost_table(reading: Timeline) -> Table:
    """Return the cost tree of a run: US dollars and the share of each branch."""
    costs = {
        key.removeprefix("costs/cum/"): value
        for key, value in reading.totals.items()
        if key.startswith("costs/cum/")
    }
    whole = costs.pop("all", None)
    labels = {"all": "costs"} | {
        path: lines + path.rpartition("/")[2] for path, lines in branches(costs)
    }
    rows = [
        {"path": path, "usd": usd, "share": usd / whole if whole else None}
        for path in labels
        if whole is not None
        for usd in [whole if path == "all" else costs[path]]
    ]
    columns = (
        Column(key="path", heading="the run's costs", form=labels.__getitem__),
        usd_column("usd", "$"),
        SHARE,
    )
    empty = "no costs were recorded" if reading.rows else ""
    return Table(name="costs", rows=rows, columns=columns, empty=empty)
