"""`art runs`: the runs below a directory, a line each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from art_core.cli.arguments import directory
from art_core.cli.reading import canonical, newest_row, problem_lines
from art_core.cli.table import table
from art_core.metrics.row import MetricsRow
from art_core.metrics.summary import read_summary
from art_core.metrics.taxonomy import Taxonomy
from art_core.plugins.host import Plugins
from art_core.rundir import FoundRun, find_runs, read_problem, runs_path

_HELP = """\
A run is a directory <dir>/<project>/models/<name> with a history.jsonl in it. A run that says it is
running although no process holds its log was killed. Runs that can't be read are listed below with
the reason.

examples:
  art runs
  art runs --dir /data/.art
"""
_HEADINGS = ("run", "step", "reward", "cost $", "status", "last row")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "runs",
        help="list runs: last step, reward, cost, status",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_directory(parser)
    parser.set_defaults(run=list_runs)


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add `--dir`."""
    parser.add_argument(
        "--dir",
        type=directory,
        metavar="PATH",
        help="where the runs lie (default: $ART_DIR, else .art)",
    )


def list_runs(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield one line per run, then the reasons why some can't be read."""
    base = runs_path(arguments.dir)
    taxonomy = plugins.taxonomy()
    problems: dict[str, str] = {}
    rows = [_line(run, taxonomy, problems) for run in find_runs(base)]
    if not rows:
        yield f"no runs in {base}; --dir or ART_DIR says where they lie"
        return
    yield from table(_HEADINGS, rows, right={"step", "reward", "cost $"})
    yield from problem_lines(problems)


def _line(run: FoundRun, taxonomy: Taxonomy, problems: dict[str, str]) -> tuple[str, ...]:
    state = run.state()
    if state.problem is not None:
        problems[run.name] = state.problem
    try:
        return _cells(run, state.status, taxonomy)
    except Exception as error:
        problems[run.name] = state.problem or read_problem(error)
        return (run.name, "-", "-", "-", "unreadable", "-")


def _cells(run: FoundRun, status: str, taxonomy: Taxonomy) -> tuple[str, ...]:
    row = None if status == "unreadable" else newest_row(run)
    if row is None:
        return (run.name, "-", "-", "-", status, "-")
    reward, cost = _headline(run, row, taxonomy)
    when = row.recorded_at.astimezone().strftime("%Y-%m-%d %H:%M")
    return (run.name, str(row.step), cell(reward, ".3f"), cell(cost, ".4f"), status, when)


def _headline(
    run: FoundRun, row: MetricsRow, taxonomy: Taxonomy
) -> tuple[float | None, float | None]:
    metrics = canonical(row, taxonomy)
    # Our last row is the run's state; rows of ART, and evaluations, may lack one or the other.
    if "reward/mean" not in metrics or (not row.seq and "costs/cum/all" not in metrics):
        kept = read_summary(run.history, taxonomy).metrics
        reward, cost = kept.get("reward/mean"), kept.get("costs/cum/all")
        return (reward.last if reward else None), (cost.last if cost else None)
    return metrics["reward/mean"], metrics.get("costs/cum/all")


def cell(value: float | None, form: str) -> str:
    """Format a number, "-" where there is none."""
    return "-" if value is None else format(value, form)
