"""Prices of a call's terms (batch, service tier, speed, geography): a dated data file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import orjson


@cache
def term_file() -> dict[str, Any]:
    """Return the file: `as_of`, `factors`, and whose searches are billed by the prompt."""
    data: dict[str, Any] = orjson.loads(
        files("art_core.prices").joinpath("term_prices.json").read_bytes()
    )
    return data


def factor_of(provider: str, model: str, term: str, value: str) -> float | None:
    """Return the factor on the list price of tokens; None when it is not known."""
    for entry in term_file()["factors"]:
        if entry["provider"] == provider and entry.get(term) == value:
            starts = entry.get("models")
            if starts is None or model.startswith(tuple(starts)):
                return float(entry["factor"])
    return None


def bills_by_prompt(provider: str, model: str) -> bool:
    """Return whether a model's web searches are billed by the prompt that had any, not each."""
    starts = term_file()["searches_billed_by_prompt"].get(provider, ())
    return model.startswith(tuple(starts))


def bills_audio_as_text(provider: str) -> bool:
    """Return whether a provider's prompts of audio cost as much as text without a price."""
    return provider in term_file()["audio_prompts_billed_as_text"]
