"""`art metrics`: the catalogue of metrics, including those of plugins."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import attrs

from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.metrics.taxonomy import CATALOGUE_VERSION, MetricSpec

_HELP = """\
A key that ends in * stands for any rest. "sum" keys add up within a step; those marked cumulative
also have their sum over the run under <section>/cum/. Former names are read, never written.

examples:
  art metrics
  art metrics --json | jq '.metrics[] | select(.direction == "lower").key'
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "metrics",
        help="list metrics: key, unit, how samples combine, meaning",
        epilog=_HELP,
    )
    parser.set_defaults(run=list_metrics)


def list_metrics(_: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the catalogue and the former names."""
    taxonomy = plugins.taxonomy()
    yield Table(
        name="metrics",
        rows=[attrs.asdict(spec) for spec in taxonomy.specs.values()],
        columns=(
            Column(key="key", heading="metric", whole=True),
            Column(key="unit", form=lambda unit: unit or "-", rank=1),
            Column(
                key="", heading="in a step", form=lambda row: behaviour(taxonomy.specs[row["key"]])
            ),
            Column(key="direction", heading="better"),
            Column(key="help", heading="meaning", wrap=True),
        ),
    )
    yield ""
    width = max(map(len, taxonomy.aliases))
    yield Record(
        {"version": CATALOGUE_VERSION, "aliases": taxonomy.aliases},
        [
            f"catalogue version {CATALOGUE_VERSION}; former names that are read:",
            f"{'former':{width}}  now",
            *(f"{old:{width}}  {new}" for old, new in sorted(taxonomy.aliases.items())),
        ],
    )


def behaviour(spec: MetricSpec) -> str:
    """Return a word or two for the combination of a metric's samples in one step."""
    if spec.derived:
        return "derived"
    return f"{spec.combine}, cumulative" if spec.cumulative else spec.combine
