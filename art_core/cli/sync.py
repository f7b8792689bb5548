"""`art sync RUN --sink NAME`: deliver the rows that a sink has not received."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from art_core.base.errors import ConfigError, SinkError
from art_core.cli.arguments import add_run
from art_core.cli.completion import completed, sink_names
from art_core.cli.text import counted
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.sinks.sync import Progress, kind_of, made_again, run_info, sync

_HELP = """\
For rows that a sink missed: its service was down, the trainer was killed, or the sink was installed
later. Goes on from the sink's cursor in the run's directory. A sink that the run's code made with
options gets the same options; secrets come from the environment. Refused while a trainer serves the
sink.

examples:
  art sync agent-001 --sink wandb
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "sync",
        help="deliver a run's rows to a sink that missed them",
        epilog=_HELP,
    )
    add_run(parser)
    sink = parser.add_argument(
        "--sink", metavar="NAME", required=True, help="a sink that is installed"
    )
    completed(sink, sink_names)
    parser.add_argument(
        "--timeout", metavar="S", type=float, default=300.0, help="seconds to try (300)"
    )
    parser.add_argument(
        "--as-installed",
        action="store_true",
        help="ignore the options that the run's code gave the sink",
    )
    parser.set_defaults(run=sync_run)


def sync_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield progress and the number of rows delivered; SinkError if rows are missing at the end."""
    if not arguments.timeout > 0:
        raise ConfigError(f"--timeout must be a number of seconds, got {arguments.timeout:g}")
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    kind = kind_of(run.path, arguments.sink)
    spec = plugins.sink(kind)
    if not arguments.as_installed:
        spec = made_again(spec, run.path, arguments.sink)
    if kind != arguments.sink:
        spec = spec.named(arguments.sink)
    info = run_info(run)
    delivery = sync(spec, info, arguments.timeout)
    before: Progress | None = None
    while True:
        try:
            progress = next(delivery)
        except StopIteration as end:
            report = end.value
            break
        if progress != before:
            failing = f" ({progress.error})" if progress.error else ""
            missing = counted(progress.missing, "row")
            yield f"{missing} of {run.name} to deliver to {spec.name!r}{failing}"
        before = progress
    if report.undelivered or report.error:
        undelivered = counted(report.undelivered, "row")
        raise SinkError(
            f"sink {spec.name!r}: {undelivered} not delivered ({report.error})",
            "They stay in the log: run this again when the sink works.",
        )
    yield Record({"run": run.name, "sink": spec.name}, [f"{spec.name!r} has all rows"])
