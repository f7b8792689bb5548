"""`art leaderboard`: runs ranked by a metric."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError
from art_core.cli.arguments import directory
from art_core.cli.text import counted, problem_lines
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.rundir import read_problem, runs_path
from art_core.metrics.taxonomy import Taxonomy
from art_core.reports import board
from art_core.reports.board import Place

log = logging.getLogger("art_core")

_HELP = """\
DIR, or --dir, is a directory of runs; several may be given (default: $ART_DIR, else .art). A column
is a metric's key, for its newest value; KEY.best and KEY.best_step are its best. The catalogue has
the better direction of a metric, by default higher. Sums over the run and clocks have no best.
Also columns: step, rows, attempts, reward_per_dollar (newest reward/mean over costs/cum/all). Each
run keeps a summary beside its log, so that only the rows that are new are read.

examples:
  art leaderboard
  art leaderboard --sort val/reward.best --columns val/reward.best,costs/cum/all
  art leaderboard --matrix reward/mean.best --status all
  art leaderboard --dir /data/.art --dir /old/.art
  art leaderboard --csv > board.csv
  art leaderboard --json | jq '.runs[0].path'     (every column, unrounded)
"""
_COLUMNS = (
    "step",
    "reward/mean",
    "reward/mean.best",
    "val/reward",
    "val/reward.best",
    "loss/train",
    "costs/cum/all",
    board.PER_DOLLAR,
)
_WHERE = "a run is in DIR/<project>/models/<name>"
_ENDED = ("finished", "interrupted", "out of budget")
_STATUSES = (*_ENDED, "running", "failed", "killed", "unknown", "all")


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "leaderboard",
        help="rank runs by any metric; as a table, a matrix or CSV",
        epilog=_HELP,
    )
    parser.add_argument("dirs", metavar="DIR", nargs="*", type=Path, help="a directory of runs")
    parser.add_argument(
        "--dir",
        metavar="PATH",
        dest="more_dirs",
        action="append",
        type=directory,
        default=[],
        help="the same as DIR; may be given several times",
    )
    parser.add_argument("--sort", metavar="KEY", default=board.REWARD, help="the column to rank by")
    parser.add_argument("--columns", metavar="KEYS", help="the columns to show, `a,b`")
    parser.add_argument(
        "--status", choices=_STATUSES, metavar="STATUS",
        help="which runs: %(choices)s (those that ended in order)",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="every column as CSV, one line per run")
    form.add_argument("--long", action="store_true", help="CSV, one line per run and key")
    form.add_argument("--matrix", metavar="KEY", help="a table of models by projects")
    parser.set_defaults(run=leaderboard)


def leaderboard(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the board in the requested form."""
    as_json = getattr(arguments, "as_json", False)
    if as_json and (arguments.csv or arguments.long):
        raise ConfigError("--json and CSV are two formats", "--json has every column as it is.")
    taxonomy = plugins.taxonomy()
    yield from _board(arguments, taxonomy)


def _listed(columns: str) -> list[str]:
    return [name.strip() for name in columns.split(",") if name.strip()]


def _board(arguments: argparse.Namespace, taxonomy: Taxonomy) -> Iterator[Output]:
    # A directory that was named twice counts once.
    given = (*arguments.dirs, *arguments.more_dirs)
    directories = list({path.resolve(): path for path in given}.values())
    directories = directories or [runs_path(None)]
    problems: dict[str, str] = {}
    places, others = _places(directories, arguments.status, taxonomy, problems)
    ranked = board.best_first(places, _column(arguments.sort, places, taxonomy), taxonomy)
    if arguments.csv or arguments.long:
        yield from (board.wide if arguments.csv else board.long)(ranked)
        for line in problem_lines(problems):
            log.warning("not in the CSV or only in part: %s", line)
        return
    where = ", ".join(map(str, directories))
    what = "runs" if arguments.status == "all" else f"{arguments.status or 'finished'} runs"
    empty = f"no {what} in {where}" + ("" if others or problems else "; " + _WHERE)
    if arguments.matrix:
        name = board.column(arguments.matrix, places, taxonomy)
        yield _matrix(board.matrix(ranked, name, taxonomy), empty)
    else:
        sort = _column(arguments.sort, places, taxonomy)
        yield _table(ranked, _shown(arguments, sort, ranked, taxonomy), sort, empty)
    text = f"{counted(others, 'run')} of another status left out; --status all shows them"
    yield Record({"left_out": others}, [text] if others else [])
    yield Record({"problems": problems}, problem_lines(problems))


def _places(
    directories: Sequence[Path],
    status_asked: str | None,
    taxonomy: Taxonomy,
    problems: dict[str, str],
) -> tuple[list[Place], int]:
    """Return the places and the number of readable runs left out; add runs to `problems`."""
    found = board.runs_in(directories, taxonomy)
    runs = [(run, run.state()) for run in found]
    problems |= {run.name: state.problem for run, state in runs if state.problem is not None}
    readable = [(run, state.status) for run, state in runs if state.status != "unreadable"]
    wanted = _ENDED if status_asked is None else (status_asked,)
    chosen = [(run, status) for run, status in readable if {status, "all"}.intersection(wanted)]
    places: list[Place] = []
    for run, status in chosen:
        try:
            places.append(board.read_place(run, status))
        except Exception as error:
            problems[run.name] = read_problem(error)
    return places, len(readable) - len(chosen)


def _column(name: str, places: Sequence[Place], taxonomy: Taxonomy) -> str:
    # The default is not the user's mistake: runs with only evaluations have no train reward.
    return name if name == board.REWARD else board.column(name, places, taxonomy)


def _shown(
    arguments: argparse.Namespace, sort: str, places: Sequence[Place], taxonomy: Taxonomy
) -> list[str]:
    if arguments.columns:
        listed = _listed(arguments.columns)
        names = [board.column(name, places, taxonomy) for name in listed]
    else:
        names = [n for n in _COLUMNS if any(n in place.values for place in places)]
    return [*dict.fromkeys([*names, sort])]


def _table(places: Sequence[Place], names: Sequence[str], sort: str, empty: str) -> Table:
    rows = [{"rank": n} | place.facts | dict(place.values) for n, place in enumerate(places, 1)]
    # The column that ranks stays on a narrow terminal.
    numbers = [
        Column(key=name, form=_number, right=True, rank=0 if name == sort else n)
        for n, name in enumerate(names, 1)
    ]
    facts = (Column(key="rank", heading="#", right=True), Column(key="run"), Column(key="status"))
    return Table(name="runs", rows=rows, columns=(*facts, *numbers), empty=empty)


def _matrix(cells: dict[str, dict[str, float]], empty: str) -> Table:
    projects = sorted({project for row in cells.values() for project in row})
    columns = [
        Column(key="", heading=project, form=_project(project), right=True, rank=n)
        for n, project in enumerate(projects, 1)
    ]
    rows = [{"model": model, "projects": row} for model, row in cells.items()]
    return Table(name="models", rows=rows, columns=(Column(key="model"), *columns), empty=empty)


def _project(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _number(row["projects"][name]) if name in row["projects"] else "-"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else format(value, ".4g")
