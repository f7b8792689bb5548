"""`art metrics`: the catalogue in force, with the specs of plugins."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import attrs
import orjson

from art_core.cli.table import table
from art_core.metrics.taxonomy import CATALOGUE_VERSION, MetricSpec, Taxonomy
from art_core.plugins.host import Plugins

_HELP = """\
A key that ends in * stands for any rest. "sum" keys add up within a step; those marked cumulative
also have their sum over the run under <section>/cum/. Former names are read, never written.

examples:
  art metrics
  art metrics --json | python -m json.tool
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "metrics",
        help="list metrics: key, unit, how samples combine, meaning",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the catalogue as JSON")
    parser.set_defaults(run=list_metrics)


def list_metrics(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[str]:
    """Yield the catalogue as a table, or as one JSON document."""
    taxonomy = plugins.taxonomy()
    if arguments.json:
        yield catalogue_json(taxonomy)
        return
    rows = [
        (spec.key, spec.unit or "-", behaviour(spec), spec.direction or "-", spec.help)
        for spec in taxonomy.specs.values()
    ]
    yield from table(("metric", "unit", "in a step", "better", "meaning"), rows)
    yield ""
    yield f"catalogue version {CATALOGUE_VERSION}; former names that are read:"
    yield from table(("former", "now"), sorted(taxonomy.aliases.items()))


def behaviour(spec: MetricSpec) -> str:
    """Say in a word or two how a metric's samples of one step combine."""
    if spec.derived:
        return "derived"
    return f"{spec.combine}, cumulative" if spec.cumulative else spec.combine


def catalogue_json(taxonomy: Taxonomy) -> str:
    """Return `{"version", "metrics", "aliases"}` as indented JSON."""
    document = {
        "version": CATALOGUE_VERSION,
        "metrics": [attrs.asdict(spec) for spec in taxonomy.specs.values()],
        "aliases": taxonomy.aliases,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
