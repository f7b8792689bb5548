"""Default prices of devices: a dated data file, never a literal in code."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import orjson


@cache
def price_file() -> dict[str, Any]:
    """Return the price file: `unit`, and `prices`, each with names, `as_of` and `source`."""
    data: dict[str, Any] = orjson.loads(
        files("art_core.prices").joinpath("gpu_prices.json").read_bytes()
    )
    return data


def listed(device: str) -> dict[str, Any] | None:
    """Return a device's entry, by the whole name that its driver gives; None when unknown.

    A part of a name does not do: an RTX 4090 of a laptop, a GH200 or a slice of an H100 is not the
    device that the file prices.
    """
    name = device.lower().removeprefix("nvidia ")
    for entry in price_file()["prices"]:
        if name in (known.lower() for known in entry["names"]):
            return dict(entry)
    return None


def default_rate(device: str) -> float | None:
    """US dollars per hour of one device; None when unknown."""
    entry = listed(device)
    return None if entry is None else float(entry["usd_per_hour"])


def source_of(device: str, usd_per_hour: float) -> str:
    """Say where a price that a hook answered is from: the file if it lists that, else a plugin."""
    entry = _with_price(device, usd_per_hour)
    return "plugin" if entry is None else f"{entry['source']}, {entry['as_of']}"


def date_of(device: str, usd_per_hour: float) -> str | None:
    """Return the date of the list that has this price; None for a price of another source."""
    entry = _with_price(device, usd_per_hour)
    return None if entry is None else str(entry["as_of"])


def _with_price(device: str, usd_per_hour: float) -> dict[str, Any] | None:
    entry = listed(device)
    return entry if entry is not None and entry["usd_per_hour"] == usd_per_hour else None
