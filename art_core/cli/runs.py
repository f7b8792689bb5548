"""`art runs`: the runs below a directory, one line per run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from art_core.cli.arguments import add_directory
from art_core.cli.text import problem_lines
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.history import MetricsRow
from art_core.log.reader import LoggedRun, find_runs
from art_core.log.rundir import read_problem, runs_path
from art_core.log.summary import read_summary

_HELP = """\
A run is a directory <dir>/<project>/models/<name> with a history.jsonl in it. A run recorded as
running although no process holds its log was killed. Runs that can't be read are listed below with
the reason.

examples:
  art runs
  art runs --dir /data/.art
  art runs --json | jq '.runs[] | select(.status == "failed").path'
"""
_COLUMNS = (
    Column(key="run"),
    Column(key="step", right=True),
    Column(key="reward", form=".3f", right=True),
    Column(key="cost_usd", heading="cost $", form=".4f", right=True),
    Column(key="status"),
    Column(
        key="last_row_at",
        heading="last row",
        form=lambda when: when.astimezone().strftime("%Y-%m-%d %H:%M"),
        right=True,
        rank=1,
    ),
)
_NO_VALUES: dict[str, Any] = dict.fromkeys(("step", "reward", "cost_usd", "last_row_at"))


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "runs",
        help="list runs: last step, reward, cost, status",
        epilog=_HELP,
    )
    add_directory(parser)
    parser.set_defaults(run=list_runs)


def list_runs(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of runs, then the problems of those that can't be read."""
    base = runs_path(arguments.dir)
    taxonomy = plugins.taxonomy()
    problems: dict[str, str] = {}
    yield Table(
        name="runs",
        rows=[_row(run, problems) for run in find_runs(base, taxonomy)],
        columns=_COLUMNS,
        empty=f"no runs in {base}; --dir or ART_DIR names their directory",
    )
    yield Record({"problems": problems}, problem_lines(problems))


def _row(run: LoggedRun, problems: dict[str, str]) -> dict[str, Any]:
    state = run.state()
    if state.problem is not None:
        problems[run.name] = state.problem
    status, values = state.status, _NO_VALUES
    if status != "unreadable":
        try:
            values = _values(run)
        except Exception as error:
            problems[run.name] = state.problem or read_problem(error)
            status = "unreadable"
    return {"run": run.name, "status": status, "path": run.path, **values}


def _values(run: LoggedRun) -> dict[str, Any]:
    row = run.last_row()
    if row is None:
        return _NO_VALUES
    step, reward, cost = _headline(run, row)
    return {"step": step, "reward": reward, "cost_usd": cost, "last_row_at": row.recorded_at}


def _headline(run: LoggedRun, row: MetricsRow) -> tuple[int, float | None, float | None]:
    metrics = row.metrics
    # Our last row is the run's state; rows of ART, and evaluations, may lack one or the other.
    if row.seq and row.split == "train" and "reward/mean" in metrics:
        return row.step, metrics["reward/mean"], metrics.get("costs/cum/all")
    page = read_summary(run.history, run.taxonomy)
    reward, cost = page.metrics.get("reward/mean"), page.metrics.get("costs/cum/all")
    return page.highest_step, (reward.last if reward else None), (cost.last if cost else None)
