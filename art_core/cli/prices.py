"""`art prices list` and `art prices update`: known prices, and newer ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.price_check import add_check, plain_price
from art_core.cli.text import counted
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.prices.book import (
    ApiPrices,
    api_prices,
    api_prices_path,
    book_rates,
    fetch_api_list,
    is_api_list,
    update_api_prices,
)
from art_core.prices.tables import (
    OLD_AFTER_DAYS,
    ListedModel,
    fetch_json,
    is_old,
    listed_models,
    models_of,
    read_table,
    save_list,
)

_HELP = """\
Prices are US dollars per million tokens, or per hour of a device, each with its date and source.
list shows hosted training and devices; with a NAME, or --all, also API models. update reads newer
lists: Tinker's and genai-prices' own by default, else a file or an address in their form or that of
art's price file. They are kept in the user's cache (ART_CACHE) and used by all later runs. check
compares the prices that a run was booked at with the newest ones; its exit status is 1 if any has
changed or is old, or calls have no price. Runs keep the prices that they were booked at; art
reprice computes them anew.

examples:
  art prices
  art prices list gpt-5
  art prices update
  art prices update tinker.json
  art prices update https://example.com/prices.json --provider acme
  art prices check agent-001 --older-than 30
  art prices check --all --json
"""
_RATES = ("input", "cached", "output")


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    group = commands.add_parser("prices", help="list, update and check prices", epilog=_HELP)
    group.set_defaults(run=list_prices, names=[], all=False)
    actions = group.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="list prices", epilog=_HELP)
    listing.add_argument(
        "names", metavar="NAME", nargs="*", help="a part of a name, as in gpt-5, openai/ or H100"
    )
    listing.add_argument("--all", action="store_true", help="all API models too")
    listing.set_defaults(run=list_prices)
    updating = actions.add_parser("update", help="read newer price lists", epilog=_HELP)
    updating.add_argument(
        "source", metavar="SOURCE", nargs="?", help="a file or an address; default both lists"
    )
    updating.add_argument(
        "--provider",
        metavar="NAME",
        default="tinker",
        help="the provider of a list that names none",
    )
    updating.set_defaults(run=update_prices)
    add_check(actions, _HELP)


def list_prices(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Yield the prices; those of old lists are marked."""
    today = _today()
    names = [name.lower() for name in arguments.names]

    def chosen(*texts: str) -> bool:
        spelled = "/".join(texts).lower()
        return not names or any(name in spelled for name in names)

    hosted = [_row(model, today) for model in listed_models().values() if chosen(*model.name)]
    hosted.sort(key=lambda row: (row["old"], row["provider"], row["model"]))
    devices = [row for row in _devices(today) if chosen(*row["names"])]
    api = api_prices() if names or arguments.all else None
    models = [] if api is None else list(_api_rows(api, today, chosen))
    tables = (
        Table(name="prices", rows=hosted, columns=_columns("hosted training")),
        Table(name="api_models", rows=models, columns=_api_columns()),
        Table(name="devices", rows=devices, columns=_device_columns()),
    )
    for number, table in enumerate(tables):
        if table.rows and any(earlier.rows for earlier in tables[:number]):
            yield ""
        yield table
    rows = [*hosted, *models, *devices]
    if not rows:
        yield f"no price is known for {', '.join(arguments.names)}"
    old = sum(row["old"] for row in rows)
    text = (
        f"{counted(old, 'price')} of lists more than {OLD_AFTER_DAYS} days old: art prices update"
    )
    yield Record({}, ["", text] if old else [])
    if not names and not arguments.all:
        yield Record({}, ["", "art prices list NAME lists API models, too, such as gpt-5"])


def update_prices(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Read and store lists; yield the prices that changed. A list that fails leaves the other."""
    if arguments.source:
        data = fetch_json(arguments.source)
        if is_api_list(data):
            yield from _update_api(data, arguments.source)
        else:
            yield from _update_hosted(data, arguments.source, arguments.provider)
        return
    problems: list[ConfigError] = []
    table = read_table("training")
    try:
        url = table["url"]
        yield from _update_hosted(fetch_json(url), url, table["provider"])
    except ConfigError as error:
        problems.append(error)
    try:
        yield from _update_api(fetch_api_list(), "genai-prices")
    except ConfigError as error:
        problems.append(error)
    if problems:
        raise ConfigError("; ".join(str(error.args[0]) for error in problems), problems[0].args[1])


def _update_hosted(data: Any, source: str, provider: str) -> Iterator[Output]:
    before = listed_models()
    models = models_of(data, source, provider, _today())
    path = save_list(models)
    rows = [
        _row(model, _today()) | {"was": _known(before.get(model.name))}
        for model in models
        if _prices(before.get(model.name)) != _prices(model)
    ]
    columns = (*_columns("hosted training"), Column(key="was", missing="new", wrap=True))
    yield Table(name="changed", rows=rows, columns=columns, empty="no price has changed")
    text = f"{counted(len(models), 'price')} kept in {path}"
    yield Record({"source": source, "file": path, "models": len(models)}, ["", text])


def _update_api(data: Any, source: str) -> Iterator[Output]:
    def everything(*_: str) -> bool:
        return True

    earlier = api_prices()
    before = {} if earlier is None else _by_model(_api_rows(earlier, _today(), everything))
    after = _by_model(_api_rows(update_api_prices(data, _today()), _today(), everything))
    rows = [
        row | {"was": _api_known(before.get(name))}
        for name, row in after.items()
        if _api_prices_of(before.get(name)) != _api_prices_of(row)
    ]
    columns = (*_api_columns(), Column(key="was", missing="new", wrap=True))
    empty = "no price of an API model has changed"
    yield Table(name="changed_api_models", rows=rows, columns=columns, empty=empty)
    path = api_prices_path()
    text = f"{counted(len(after), 'price')} of API models kept in {path}"
    yield Record({"api_source": source, "api_file": path, "api_count": len(after)}, ["", text])


def _today() -> date:
    return datetime.now(UTC).date()


def _row(model: ListedModel, today: date) -> dict[str, Any]:
    return attrs.asdict(model) | {"old": is_old(model.as_of, today)}


def _columns(title: str) -> tuple[Column, ...]:
    prices = [
        Column(key=key, form=".10g", right=True) for key in ("prefill", "cached", "sample", "train")
    ]
    return (Column(key="model", heading=title, whole=True), *prices, *_origin())


def _origin() -> tuple[Column, ...]:
    def dated(row: Mapping[str, Any]) -> str:
        return f"{row['as_of'] or '-'}{' (old)' if row['old'] else ''}"

    return (
        Column(key="", heading="as of", form=dated, rank=1),
        Column(key="provider", missing="", rank=2),
        Column(key="source", wrap=True, rank=3),
    )


def _api_rows(
    prices: ApiPrices, today: date, chosen: Callable[..., bool]
) -> Iterator[dict[str, Any]]:
    day = prices.day()
    for provider, model in prices.models():
        rates = book_rates(provider, model, None, prices) if chosen(provider, model) else None
        if rates is None:
            continue
        yield {
            "provider": provider,
            "model": model,
            "input": rates.input_per_million,
            "cached": rates.cache_read_per_million,
            "output": rates.output_per_million,
            "as_of": day,
            "source": prices.source,
            "old": is_old(day, today),
        }


def _api_columns() -> tuple[Column, ...]:
    def named(row: Mapping[str, Any]) -> str:
        return f"{row['provider']}/{row['model']}"

    numbers = [Column(key=key, form=".10g", right=True) for key in _RATES]
    dated, _, source = _origin()
    return (Column(key="", heading="API model", form=named, whole=True), *numbers, dated, source)


def _by_model(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["provider"], row["model"]): row for row in rows}


def _api_prices_of(row: Mapping[str, Any] | None) -> tuple[float | None, ...]:
    return () if row is None else tuple(row[name] for name in _RATES)


def _api_known(row: Mapping[str, Any] | None) -> str | None:
    return None if row is None else " / ".join(plain_price(row[name]) for name in _RATES)


def _devices(today: date) -> Iterator[dict[str, Any]]:
    for entry in read_table("gpu")["prices"]:
        as_of = str(entry["as_of"])
        yield {
            "device": entry["names"][0],
            "names": entry["names"],
            "usd_per_hour": entry["usd_per_hour"],
            "as_of": as_of,
            "source": entry["source"],
            "old": is_old(as_of, today),
        }


def _device_columns() -> tuple[Column, ...]:
    hourly = Column(key="usd_per_hour", heading="$ an hour", form=".10g", right=True)
    dated, _, source = _origin()
    return (Column(key="device", whole=True), hourly, dated, source)


def _prices(model: ListedModel | None) -> tuple[float | None, ...]:
    return () if model is None else (model.prefill, model.cached, model.sample, model.train)


def _known(model: ListedModel | None) -> str | None:
    if model is None:
        return None
    return f"{' / '.join(map(plain_price, _prices(model)))} ({model.as_of})"
