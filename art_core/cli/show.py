"""`art show RUN`: a run's headline curves as sparklines, and what it cost as a tree."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from art_core.cli.reading import Reading, read_run
from art_core.cli.runs import add_directory
from art_core.cli.sparkline import sparkline
from art_core.cli.table import table
from art_core.plugins.host import Plugins
from art_core.rundir import find_run, runs_path

_HELP = """\
RUN is a name, project/name, or a run's directory. Curves read left to right, a bar a step (or the
mean of neighbours, when there are many steps). The cost tree holds the whole run, all attempts.

examples:
  art show agent-001
  art show demo/agent-001 --dir /data/.art
  art show .art/demo/models/agent-001
"""
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
_SPEEDS = (
    ("actor tok/s", "data/step_actor_tokens", "time/step_actor_s"),
    ("trainer tok/s", "data/step_trainer_tokens", "time/step_trainer_s"),
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="show a run: curves and cost tree",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="RUN", help="a run's name, project/name or directory")
    add_directory(parser)
    parser.set_defaults(run=show_run)


def show_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield a heading, the curves and the cost tree."""
    run = find_run(arguments.name, runs_path(arguments.dir))
    reading = read_run(run, plugins.taxonomy())
    state = run.state()
    yield f"{run.name}  {state.status}  {run.path}"
    yield from filter(None, (state.problem, state.reason))
    if reading.last is None:
        yield "no rows yet"
        return
    last = reading.last
    yield f"step {last.step}, {reading.rows} rows, attempt {max(last.attempt, 1)}"
    yield ""
    yield from curve_lines(reading)
    yield ""
    yield from cost_lines(reading.totals)


def curve_lines(reading: Reading) -> Iterator[str]:
    """Yield a line a headline curve that was logged: first, last, lowest and highest value."""
    curves = [(label, reading.curve(key)) for label, key in _CURVES]
    curves.append(("$ a step", dict(sorted(reading.spent.items()))))
    curves += [(label, _speed(reading, tokens, seconds)) for label, tokens, seconds in _SPEEDS]
    rows = [
        (label, sparkline(values), *(format(v, ".4g") for v in _ends(values)))
        for label, values in ((label, list(curve.values())) for label, curve in curves)
        if values
    ]
    if not rows:
        return iter(("no headline metric was logged",))
    headings = ("curve", "", "first", "last", "low", "high")
    return table(headings, rows, right=set(headings[2:]))


def _ends(values: list[float]) -> tuple[float, float, float, float]:
    return values[0], values[-1], min(values), max(values)


def _speed(reading: Reading, tokens: str, seconds: str) -> dict[int, float]:
    time = reading.curve(seconds)
    return {s: n / time[s] for s, n in reading.curve(tokens).items() if time.get(s, 0.0) > 0}


def cost_lines(totals: Mapping[str, float]) -> Iterator[str]:
    """Yield the cost tree of a run: US dollars and the share of each branch."""
    costs = {
        key.removeprefix("costs/cum/"): value
        for key, value in totals.items()
        if key.startswith("costs/cum/")
    }
    whole = costs.pop("all", None)
    if whole is None:
        yield "no costs were recorded"
        return
    rows = [("costs", usd(whole), "100%" if whole else "-")]
    rows += [
        (f"{branch}{path.rpartition('/')[2]}", usd(costs[path]), share(costs[path], whole))
        for path, branch in branches(costs)
    ]
    yield from table(("the run's costs", "$", "share"), rows, right={"$", "share"})


def usd(value: float) -> str:
    """Format US dollars, to a millionth."""
    return format(value, ".6f")


def share(part: float, whole: float) -> str:
    """Format a part of a whole in per cent, "-" where there is nothing to share."""
    return format(part / whole, ".0%") if whole else "-"


def branches(
    costs: Mapping[str, float], above: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield (path, the tree's lines before its name) of cost paths, the dearest branch first."""
    children = [path for path in costs if path.rpartition("/")[0] == above]
    children.sort(key=lambda path: (-costs[path], path))
    for path in children:
        is_last = path == children[-1]
        yield path, indent + ("└─ " if is_last else "├─ ")
        yield from branches(costs, path, indent + ("   " if is_last else "│  "))
