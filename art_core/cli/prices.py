"""`art prices list` and `art prices update`: token prices of hosted training."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import attrs

from art_core.cli.text import counted
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.prices.tables import (
    OLD_AFTER_DAYS,
    ListedModel,
    fetch_list,
    is_old,
    listed_models,
    read_table,
    save_list,
)

_HELP = """\
Prices are US dollars per million tokens, each with the date and the source of its list. update
reads a newer list: Tinker's own by default, or a file or address with a list in its form or in
that of art's price file. It is kept in the user's cache (ART_CACHE) and used by all later runs;
of each model the newest prices count. Runs keep the prices that they were booked at; art reprice
computes them anew.

examples:
  art prices
  art prices update
  art prices update tinker.json
  art prices update https://example.com/prices.json --provider acme
"""


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    group = commands.add_parser("prices", help="list prices of hosted training", epilog=_HELP)
    group.set_defaults(run=list_prices)
    actions = group.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="list prices", epilog=_HELP)
    listing.set_defaults(run=list_prices)
    updating = actions.add_parser("update", help="read a newer price list", epilog=_HELP)
    updating.add_argument(
        "source", metavar="SOURCE", nargs="?", help="a file or an address; default Tinker's list"
    )
    updating.add_argument(
        "--provider",
        metavar="NAME",
        default="tinker",
        help="the provider of a list that names none",
    )
    updating.set_defaults(run=update_prices)


def list_prices(_: argparse.Namespace, __: Plugins) -> Iterator[Output]:
    """Yield the prices; those of old lists are marked."""
    today = _today()
    rows = [_row(model, today) for model in listed_models().values()]
    rows.sort(key=lambda row: (row["old"], row["provider"], row["model"]))
    yield Table(name="prices", rows=rows, columns=_columns())
    old = sum(row["old"] for row in rows)
    text = (
        f"{counted(old, 'price')} of lists more than {OLD_AFTER_DAYS} days old: art prices update"
    )
    yield Record({}, ["", text] if old else [])


def update_prices(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Read and store a list; yield the prices that changed."""
    source = arguments.source or read_table("training")["url"]
    before = listed_models()
    models = fetch_list(source, arguments.provider, _today())
    path = save_list(models)
    rows = [
        _row(model, _today()) | {"was": _known(before.get(model.name))}
        for model in models
        if _prices(before.get(model.name)) != _prices(model)
    ]
    columns = (*_columns(), Column(key="was", missing="new", wrap=True))
    yield Table(name="changed", rows=rows, columns=columns, empty="no price has changed")
    text = f"{counted(len(models), 'price')} kept in {path}"
    yield Record({"source": source, "file": path, "models": len(models)}, ["", text])


def _today() -> date:
    return datetime.now(UTC).date()


def _row(model: ListedModel, today: date) -> dict[str, Any]:
    return attrs.asdict(model) | {"old": is_old(model.as_of, today)}


def _columns() -> tuple[Column, ...]:
    def dated(row: Mapping[str, Any]) -> str:
        return f"{row['as_of']} (old)" if row["old"] else str(row["as_of"])

    prices = [
        Column(key=key, form=".10g", right=True) for key in ("prefill", "cached", "sample", "train")
    ]
    return (
        Column(key="model", whole=True),
        *prices,
        Column(key="", heading="as of", form=dated, rank=1),
        Column(key="provider", rank=2),
        Column(key="source", wrap=True, rank=3),
    )


def _prices(model: ListedModel | None) -> tuple[float | None, ...]:
    return () if model is None else (model.prefill, model.cached, model.sample, model.train)


def _known(model: ListedModel | None) -> str | None:
    if model is None:
        return None
    known = (format(price, ".10g") if price is not None else "-" for price in _prices(model))
    return f"{' / '.join(known)} ({model.as_of})"
