"""Default prices of hosted training: a dated data file, never a literal in code."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from art_core.costs.rates import TokenRates


@cache
def price_file() -> dict[str, Any]:
    """Return the price file: `provider`, `as_of`, `source`, `unit` and `prices`."""
    data: dict[str, Any] = orjson.loads(
        files("art_core.costs").joinpath("training_prices.json").read_bytes()
    )
    return data


def training_rates(provider: str, model: str) -> TokenRates | None:
    """Return what prefill (as input), sampling (as output) and training of a model cost; None when
    the file does not name it.
    """
    data = price_file()
    if provider != data["provider"]:
        return None
    for entry in data["prices"]:
        if entry["model"].lower() == model.lower():
            return TokenRates(
                input_per_million=entry["prefill"],
                output_per_million=entry["sample"],
                train_per_million=entry["train"],
                source=f"{data['source']}, {data['as_of']}",
            )
    return None
