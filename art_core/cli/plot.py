"""`art plot RUN... KEY...`: curves in one figure, as a file or in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_directory, output_file
from art_core.cli.completion import completed, metric_keys, run_names
from art_core.cli.text import counted
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.log.reader import LoggedRun, find_run
from art_core.log.rundir import runs_path
from art_core.metrics.taxonomy import Taxonomy
from art_core.reports.curves import STEP, Curve, curve

_HELP = """\
A key has a slash and a known section (reward/mean); everything else names a run, or is a run's
directory. Every run's every key is a line of one figure. Needs: pip install 'art-core[plot]';
--json prints the curves' points without it.

examples:
  art plot agent-001 reward/mean
  art plot agent-001 agent-002 reward/mean val/reward --x costs/cum/all --out curve.png
  art plot agent-001 reward/mean --json | jq '.curves[0].y'
"""
_CELLS = (100, 28)
_MARKERS = ("hd", "+", "o", "x", "*", "#")  # distinct without colours


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "plot",
        help="plot metrics of runs over steps, dollars or any metric",
        epilog=_HELP,
    )
    names = parser.add_argument(
        "names", metavar="RUN... KEY...", nargs="+", help="runs, then metrics"
    )
    completed(names, lambda **requested: run_names(**requested) + metric_keys())
    x = parser.add_argument("--x", metavar="KEY", default=STEP, help="what the x axis is (step)")
    completed(x, metric_keys)
    parser.add_argument("--out", metavar="FILE", type=output_file, help="a .png, .svg or .pdf")
    add_directory(parser)
    parser.set_defaults(run=plot)


def plot(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Write the figure and yield its path, or yield the drawing; programs get the points."""
    taxonomy = plugins.taxonomy()
    base = runs_path(arguments.dir)
    given = arguments.names
    is_key = [n.partition("/")[0] in taxonomy.sections and not Path(n).is_dir() for n in given]
    keys = [taxonomy.resolve(n) for n, key in zip(given, is_key, strict=True) if key]
    runs = [_run(n, base, taxonomy) for n, key in zip(given, is_key, strict=True) if not key]
    if not keys or not runs:
        raise ConfigError(
            f"nothing to plot: {counted(len(runs), 'run')} and {counted(len(keys), 'metric')} in "
            f"{' '.join(given)!r}",
            "Name at least one of each: art plot agent-001 reward/mean",
        )
    x = taxonomy.resolve(arguments.x)
    named = [
        (run.name, key, curve(run.name, curves, key, x))
        for run in runs
        for curves in [run.timeline().curves()]
        for key in keys
    ]
    lines = [line for _, _, line in named]
    points = {
        "x": x,
        "curves": [
            {"run": run, "key": key, "x": line.xs, "y": line.ys} for run, key, line in named
        ],
    }
    across, up = _axis(taxonomy, [x]), _axis(taxonomy, keys)
    if arguments.out is None:
        yield Record(points, _terminal(lines, across, up))
        return
    out = arguments.out if arguments.out.suffix else arguments.out.with_suffix(".png")
    write_figure(lines, across, up, out)
    yield Record(points | {"file": out}, [str(out)])


def _axis(taxonomy: Taxonomy, keys: Sequence[str]) -> str:
    """Return an axis label: a key with its unit, or the unit that several keys share."""
    units = {taxonomy.spec(key).unit for key in keys}
    unit = units.pop() if len(units) == 1 else ""
    if len(set(keys)) > 1:
        return unit
    named = not unit or keys[0].startswith(f"{unit}/")
    return keys[0] if named else f"{keys[0]} ({unit})"


def _run(requested: str, base: Path, taxonomy: Taxonomy) -> LoggedRun:
    try:
        return find_run(requested, base, taxonomy)
    except ConfigError as error:
        if "/" not in requested:
            raise
        sections = ", ".join(sorted(taxonomy.sections))
        raise ConfigError(
            str(error), f"No metric either: their names begin with one of {sections}."
        ) from error


def write_figure(curves: Sequence[Curve], across: str, up: str, out: Path) -> None:
    """Write curves as an image; ConfigError if matplotlib is missing or can't write such a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing("matplotlib") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    for line in curves:
        axes.plot(line.xs, line.ys, label=line.label, marker="." if len(line.xs) < 50 else "")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    try:
        figure.savefig(out, dpi=150)
    except ValueError as error:
        raise ConfigError(f"cannot write {out}: {error}") from error


def _terminal(curves: Sequence[Curve], across: str, up: str) -> Iterator[str]:
    try:
        import plotext
    except ImportError as error:
        raise _missing("plotext") from error
    figure = plotext.figure
    figure.clear()
    figure.plot_size(*_CELLS)
    for line, marker in zip(curves, cycle(_MARKERS)):
        signal = figure.signal(line.xs, line.ys, marker=marker)
        signal.lines()
        signal.label(line.label)
        figure.draw(signal)
    figure.label(across, "x")
    figure.label(up, "y")
    drawing: str = figure.build().string(colorless=True)
    yield from (line.rstrip() for line in drawing.splitlines())


def _missing(library: str) -> ConfigError:
    return ConfigError(
        f"plots need {library}, which is not installed", "pip install 'art-core[plot]'"
    )
