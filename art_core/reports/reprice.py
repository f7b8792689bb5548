"""A run's costs at other prices: the receipts are priced again, and the log is not changed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError, unknown
from art_core.base.files import replacing
from art_core.base.numbers import price_of
from art_core.costs.builder import PriceBook, bare_name
from art_core.hooks.host import Plugins
from art_core.log.history import MetricsRow
from art_core.log.reader import LoggedRun, receipts_of
from art_core.metrics.receipt import Receipt, TokenRates, price, rates_of
from art_core.prices.tables import gpu_rate_origin

REPRICED_FILE = "repriced.csv"
_COLUMNS = ("seq", "attempt", "step", "split", "leaf", "booked_usd", "repriced_usd")
_GIVEN = ("explicit", "registered")


@attrs.frozen(kw_only=True)
class Prices:
    """The prices to use: those given by name, else those of the price book.

    `models` maps `provider/model` or `model` to rates; `devices` maps a device's name, with or
    without "NVIDIA", to US dollars an hour, with "" for all others. Names match in upper and
    lower case.
    """

    book: PriceBook
    models: Mapping[str, TokenRates] = attrs.field(factory=dict)
    devices: Mapping[str, float] = attrs.field(factory=dict)

    def usd(self, receipt: Receipt) -> float | None:
        """Return the US dollars of a receipt at these prices, else those that were recorded.

        A cost that the provider reported stays. A price that was given to the run stays unless
        these prices name its model or device.
        """
        if receipt.reported:
            return receipt.usd
        found = self._device(receipt) if receipt.device_seconds else self._tokens(receipt)
        return receipt.usd if found is None else found

    def named(self, receipt: Receipt) -> str | None:
        """Return the name in these prices of a receipt's model or device; None without one."""
        if receipt.device_seconds:
            return _named(self.devices, (receipt.item, _short(receipt.item)), _short)
        bare = bare_name(receipt.provider, receipt.item)
        names = (f"{receipt.provider}/{receipt.item}", receipt.item)
        return _named(self.models, (*names, f"{receipt.provider}/{bare}", bare), str.lower)

    def unmatched(self, bought: Iterable[Receipt]) -> list[str]:
        """Return the names in these prices that no purchase has."""
        used = {self.named(receipt) for receipt in bought}
        return sorted(name for name in (*self.models, *self.devices) if name and name not in used)

    def hourly(self, receipt: Receipt) -> float | None:
        """Return US dollars an hour of a receipt's device; None for what was given to the run."""
        rate = self.devices.get(self.named(receipt) or "")
        if rate is None and not was_given(receipt):
            rate = self.book.plugins.gpu_rate(receipt.item)
        return rate

    def rates(self, receipt: Receipt) -> TokenRates | None:
        """Return the rates of a receipt's tokens; None for what was given to the run."""
        name = self.named(receipt)
        rates = self.models[name] if name is not None else None
        if rates is None and not was_given(receipt):
            rates = self.book.rates(receipt.provider, receipt.item, _one_call(receipt).usage)
        return rates

    def _device(self, receipt: Receipt) -> float | None:
        rate = self.hourly(receipt)
        return None if rate is None else receipt.device_seconds / 3600.0 * rate

    def _tokens(self, receipt: Receipt) -> float | None:
        rates, usage = self.rates(receipt), receipt.usage
        if rates is None or not usage.total_tokens or not rates.cover(usage):
            return None
        return price(usage, rates)


def was_given(receipt: Receipt) -> bool:
    """Return whether the run's own code gave the price."""
    return receipt.rates.get("source") in _GIVEN


def _short(device: str) -> str:
    return device.lower().removeprefix("nvidia ")


def _named(
    prices: Collection[str], names: Sequence[str], folded: Callable[[str], str]
) -> str | None:
    """Return the first of several names that has a price, as the prices spell it."""
    exact = next((name for name in names if name in prices), None)
    if exact is not None:
        return exact
    spelled = {folded(name): name for name in prices if name}
    return next((spelled[folded(name)] for name in names if folded(name) in spelled), None)


def _one_call(receipt: Receipt) -> Receipt:
    """Return the average call, since a model's price may depend on the length of a prompt."""
    return attrs.evolve(receipt, input_tokens=round(receipt.input_tokens / max(receipt.calls, 1)))


def read_prices(path: Path, book: PriceBook) -> Prices:
    """Read `{"models": {name: prices}, "devices": {name: usd_per_hour}}`; ConfigError for others.

    A model's prices have the names that `register_model_pricing` takes.
    """
    example = 'Such as {"models": {"openai/gpt-5": {"prompt_per_million": 1.25, ...}}}.'
    try:
        stored: Any = orjson.loads(path.read_bytes())
        if not isinstance(stored, dict):
            raise TypeError(f"an object is needed, this is a {type(stored).__name__}")
        parts: dict[str, Any] = {"models": {}, "devices": {}} | stored
        for part in parts.keys() - {"models", "devices"}:
            raise ConfigError(unknown(f"part of {path}", part, ("models", "devices")), example)
        models = {name: _rates(name, given, path) for name, given in parts["models"].items()}
        devices = {name: _hourly(name, usd, path) for name, usd in parts["devices"].items()}
    except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no price file: {error}", example) from error
    return Prices(book=book, models=models, devices=devices)


def _rates(name: str, given: Mapping[str, float], path: Path) -> TokenRates:
    try:
        return rates_of(dict(given), source=path.name)
    except ConfigError as error:
        raise ConfigError(f"{path}, model {name!r}: {error.args[0]}", error.args[1]) from error


def _hourly(name: str, usd: float, path: Path) -> float:
    return price_of(f"{path}, device {name!r}: the price an hour", usd)


@attrs.frozen(kw_only=True)
class Line:
    """A cost leaf of one row: its recorded dollars and those at the new prices."""

    row: MetricsRow
    leaf: str
    booked: float
    repriced: float

    @property
    def cells(self) -> tuple[Any, ...]:
        """The cells of the line in the file."""
        row = self.row
        return row.seq, row.attempt, row.step, row.split, self.leaf, self.booked, self.repriced


def repriced_lines(run: LoggedRun, prices: Prices) -> Iterator[Line]:
    """Yield the leaves of each row; dollars without a receipt stay as they were recorded."""
    for row in run.rows():
        booked = _leaves(row.metrics)
        change: dict[str, float] = {}
        for receipt in receipts_of(row):
            difference = (prices.usd(receipt) or 0.0) - (receipt.usd or 0.0)
            change[receipt.leaf] = change.get(receipt.leaf, 0.0) + difference
        for leaf in sorted(booked.keys() | change.keys()):
            usd = booked.get(leaf, 0.0)
            yield Line(row=row, leaf=leaf, booked=usd, repriced=usd + change.get(leaf, 0.0))


def _leaves(metrics: Mapping[str, float]) -> dict[str, float]:
    costs = {k: v for k, v in metrics.items() if k.startswith("costs/") and "/cum/" not in k}
    parents = {key.rpartition("/")[0] for key in costs} | {"costs/all"}
    return {key: usd for key, usd in costs.items() if key not in parents}


def reprice(run: LoggedRun, prices: Prices) -> tuple[Path, dict[str, tuple[float, float]]]:
    """Write `repriced.csv` beside the log; return its path, and (booked, new) dollars by leaf."""
    out = run.path / REPRICED_FILE
    sums: dict[str, tuple[float, float]] = {}
    with replacing(out) as binary, TextIOWrapper(binary, encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for line in repriced_lines(run, prices):
            writer.writerow(line.cells)
            booked, new = sums.get(line.leaf, (0.0, 0.0))
            sums[line.leaf] = (booked + line.booked, new + line.repriced)
    return out, sums


def gpu_price(plugins: Plugins, device: str) -> tuple[float | None, str]:
    """Return US dollars per hour of a device, and where the price is from; None and "" without
    one.
    """
    usd = plugins.gpu_rate(device)
    return usd, "" if usd is None else gpu_rate_origin(device, usd)["source"]
