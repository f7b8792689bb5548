"""`art rm RUN...`: delete runs with their checkpoints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_directory
from art_core.cli.completion import completed, run_names
from art_core.cli.deletion import deletable_run, delete_run, holdings
from art_core.cli.text import counted, sized
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.log.rundir import runs_path

_HELP = """\
Deletes a run's directory: its log, trajectories and checkpoints. On a terminal it asks first; in a
script --yes is needed. A run that a process trains, or whose rows `art sync` delivers, is refused.
Rows that a tracker has stay there. Symbolic links are removed, never followed.

examples:
  art rm agent-001
  art rm demo/agent-001 demo/agent-002 --yes
  art rm agent-001 --yes --json | jq '.deleted[0].bytes'
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("rm", help="delete runs with their checkpoints", epilog=_HELP)
    names = parser.add_argument(
        "names", metavar="RUN", nargs="+", help="a run's name, project/name or directory"
    )
    completed(names, run_names)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_directory(parser)
    parser.set_defaults(run=remove_runs)


def remove_runs(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Delete the runs, with a confirmation unless `--yes` is given; yield the freed bytes."""
    base = runs_path(arguments.dir)
    found = [deletable_run(name, base) for name in arguments.names]
    runs = list({run.path.resolve(): run for run in found}.values())
    contents = [holdings(run.path) for run in runs]
    texts = [
        f"{run.name} ({sized(holds.bytes)}, {counted(holds.checkpoints, 'checkpoint')})"
        for run, holds in zip(runs, contents, strict=True)
    ]
    if not arguments.yes and not _confirmed(f"delete {', '.join(texts)}?"):
        yield Record({"deleted": []}, ["nothing was deleted"])
        return
    deleted: list[dict[str, Any]] = []
    for run, holds, text in zip(runs, contents, texts, strict=True):
        delete_run(run)
        deleted.append({"run": run.name, "path": run.path, **attrs.asdict(holds)})
        yield Record({"deleted": deleted}, [f"deleted {text}"])


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("deleting needs a confirmation", "Give --yes where no terminal can ask.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
