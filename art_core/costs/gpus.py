"""Default prices of devices: a dated data file, never a literal in code."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import orjson


@cache
def price_file() -> dict[str, Any]:
    """Return the price file: `as_of`, `unit` and `prices` with their sources."""
    data: dict[str, Any] = orjson.loads(
        files("art_core.costs").joinpath("gpu_prices.json").read_bytes()
    )
    return data


def default_rate(device: str) -> float | None:
    """US dollars per hour of one device, by the first entry whose `match` is in its name; None when
    unknown.
    """
    for entry in price_file()["prices"]:
        if entry["match"].lower() in device.lower():
            return float(entry["usd"])
    return None
