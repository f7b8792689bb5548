"""The dated price tables in this folder, and the prices of devices."""

from __future__ import annotations

from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

OLD_AFTER_DAYS = 60


@cache
def read_table(name: str) -> dict[str, Any]:
    """Return a table: "gpu", "term" or "training". Each names its unit, dates and sources."""
    file = files("art_core.prices").joinpath(f"{name}_prices.json")
    data: dict[str, Any] = orjson.loads(file.read_bytes())
    return data


def day_of(as_of: str) -> date:
    """Return a day, or the first one of a month such as "2026-03"; ValueError for other texts."""
    return date.fromisoformat(f"{as_of}-01" if len(as_of) == len("2026-03") else as_of)


def is_old(as_of: object, on: date) -> bool:
    """Return whether a price dated `as_of` is older than 60 days; False without a date."""
    if not isinstance(as_of, str):
        return False
    try:
        return (on - day_of(as_of)).days > OLD_AFTER_DAYS
    except ValueError:
        return False


def gpu_rate(device: str) -> float | None:
    """Return US dollars per hour of one device; None when unknown."""
    entry = _listed_gpu(device)
    return None if entry is None else float(entry["usd_per_hour"])


def gpu_rate_origin(device: str, usd_per_hour: float) -> dict[str, str]:
    """Return `source` and `as_of` of a price that a hook gave: from the table, else a plugin."""
    entry = _listed_gpu(device)
    if entry is None or entry["usd_per_hour"] != usd_per_hour:
        return {"source": "plugin"}
    return {"source": f"{entry['source']}, {entry['as_of']}", "as_of": str(entry["as_of"])}


def _listed_gpu(device: str) -> dict[str, Any] | None:
    # The driver's whole name must match. A laptop's RTX 4090, a GH200 and a slice of an H100 have
    # prices of their own.
    name = device.lower().removeprefix("nvidia ")
    for entry in read_table("gpu")["prices"]:
        if name in (known.lower() for known in entry["names"]):
            return dict(entry)
    return None
