"""`art export RUN`: a run's log as a table in a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from art_core.cli.arguments import add_run, output_file
from art_core.cli.text import counted
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.reports.export import FORMATS, export

_HELP = """\
csv and parquet have one line per row and one column per key, blank where the row has no value;
jsonl keeps the rows as they are, with their receipts. Former names of metrics become today's.
Without --format the file's ending decides. Parquet needs: pip install 'art-core[parquet]'. It keeps
the types; polars guesses those of the other two by the first 100 rows, so that a key which comes
later needs pl.read_csv(FILE, infer_schema_length=None).

examples:
  art export agent-001 --out rows.csv
  art export agent-001 --format parquet --out rows.parquet
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export",
        help="write a run's rows as CSV, Parquet or JSON lines",
        epilog=_HELP,
    )
    add_run(parser)
    parser.add_argument("--format", choices=[*FORMATS], help="default: the ending of FILE, or csv")
    parser.add_argument("--out", metavar="FILE", type=output_file, required=True)
    parser.set_defaults(run=export_run)


def export_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Write the file and yield how many rows it has."""
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    ending = arguments.out.suffix.removeprefix(".")
    form = arguments.format or (ending if ending in FORMATS else "csv")
    count = export(run, form, arguments.out)
    values = {"run": run.name, "rows": count, "format": form, "file": arguments.out}
    yield Record(values, [f"{counted(count, 'row')} of {run.name} in {arguments.out}"])
