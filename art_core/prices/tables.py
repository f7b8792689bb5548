"""Dated prices: of devices, and of tokens of hosted training.

Tables in this folder have the prices of devices and of hosted training. Newer lists of hosted
training are saved by `art prices update`. `book.py` has those of API models.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.base.files import replace_json
from art_core.base.numbers import price_of
from art_core.metrics.receipt import TokenRates

log = logging.getLogger("art_core")

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


def is_old(as_of: object, on: date, after_days: int = OLD_AFTER_DAYS) -> bool:
    """Return whether a price dated `as_of` is older than some days; False without a date."""
    if not isinstance(as_of, str):
        return False
    try:
        return (on - day_of(as_of)).days > after_days
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


CACHED = ":cached-prefill"
"""After a model's name: its prompt tokens that the service had in its cache."""
_NAMES = ("model", "tinker_id")
_SPELLED = {"cached_prefill": "cached", "prefill_cached": "cached"}
_TIMEOUT_S = 30
_PRICES = ("prefill", "cached", "sample", "train")


@attrs.frozen(kw_only=True)
class ListedModel:
    """A model in a price list: US dollars per million tokens, None for a price that is not known.

    `cached` is for prompt tokens that the service had in its cache.
    """

    provider: str
    model: str
    prefill: float
    sample: float
    cached: float | None = None
    train: float | None = None
    as_of: str
    source: str

    @property
    def name(self) -> tuple[str, str]:
        """The provider's and the model's name, in lower case."""
        return self.provider.lower(), self.model.lower()


def cached_file(name: str) -> Path:
    """Return the path of a saved list: in `ART_CACHE`, else in `art` in the user's cache."""
    given = os.environ.get("ART_CACHE")
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "art"
    return (Path(given).expanduser() if given else cache_home) / name


def update_path() -> Path:
    """Return the file of saved lists of hosted training."""
    return cached_file("training_prices.json")


def training_rates(provider: str, model: str) -> TokenRates | None:
    """Return a model's rates, None when no list has it: prefill is input, cached prefill a cache
    read, sampling output.

    With `:cached-prefill` after the model's name, input has the price of cached prefill.
    """
    bare = model.lower().removesuffix(CACHED)
    entry = listed_models().get((provider.lower(), bare))
    if entry is None:
        return None
    prefill = entry.prefill if bare == model.lower() else entry.cached
    if prefill is None:
        return None
    return TokenRates(
        input_per_million=prefill,
        output_per_million=entry.sample,
        cache_read_per_million=entry.cached,
        train_per_million=entry.train,
        source=f"{entry.source}, {entry.as_of}",
        as_of=entry.as_of,
    )


@cache
def listed_models() -> dict[tuple[str, str], ListedModel]:
    """Return the models of the table and of saved lists, each at its newest prices."""
    models = [*read_list(read_table("training"), {}), *_saved_models()]
    return {m.name: m for m in sorted(models, key=lambda m: day_of(m.as_of))}


def _saved_models() -> list[ListedModel]:
    try:
        return read_list(orjson.loads(update_path().read_bytes()), {})
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is not used: %s. Run `art prices update` again.", update_path(), error)
        return []


def save_list(models: Iterable[ListedModel]) -> Path:
    """Save the models of a list for later runs, beside those of earlier lists; return the file."""
    saved = {model.name: model for model in (*_saved_models(), *models)}
    path = update_path()
    replace_json(path, {"prices": [attrs.asdict(model) for model in saved.values()]})
    listed_models.cache_clear()
    return path


def fetch_json(source: str) -> Any:
    """Read a price list from a file or an address (http, https); ConfigError when that fails."""
    try:
        return orjson.loads(_read(source))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read a price list from {source}: {error}",
            "A list that was fetched elsewhere is read by `art prices update FILE`.",
        ) from error


def models_of(data: Any, source: str, provider: str, today: date) -> list[ListedModel]:
    """Return the models of a list of hosted training that was read from a source; ConfigError for
    anything else.
    """
    table = read_table("training")
    defaults = {"provider": provider, "as_of": today.isoformat(), "source": source}
    if provider == table["provider"]:
        defaults["cached_share"] = table["cached_share"]
    try:
        return read_list(data, defaults)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.args[0]}", error.args[1]) from error
    except ValueError as error:
        raise ConfigError(f"{source}: as_of is a day such as 2026-10-07: {error}") from error


def _read(source: str) -> bytes:
    if not source.startswith(("http://", "https://")):
        return Path(source).expanduser().read_bytes()
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(source, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http only
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return body


def read_list(data: Any, defaults: Mapping[str, Any]) -> list[ListedModel]:
    """Read a price list: an object such as the table, or a list of objects as Tinker publishes it.

    `defaults` has the `provider`, `as_of` and `source` of a list without them, and `cached_share`,
    the price of cached prefill as a part of that of prefill. Raises ConfigError for anything else,
    and for a model without prices.
    """
    rows = data.get("prices") if isinstance(data, Mapping) else data
    if not isinstance(rows, list) or not rows:
        raise ConfigError(
            f"no price list: {data!s:.80}",
            'It is a list of {"model": ..., "prefill": ..., "sample": ..., "train": ...}, or an '
            'object with it under "prices".',
        )
    own = data if isinstance(data, Mapping) else {}
    share = defaults.get("cached_share")
    return [_model(row, {**defaults, **own}, share) for row in rows]


def _model(row: Any, defaults: Mapping[str, Any], share: float | None) -> ListedModel:
    name = next((row[key] for key in _NAMES if isinstance(row, Mapping) and row.get(key)), None)
    if not isinstance(name, str):
        raise ConfigError(f"an entry of the price list has no model: {row!s:.80}")
    row = {_SPELLED.get(key, key): value for key, value in row.items()}
    prices = {key: _dollars(f"{key} of {name}", row.get(key)) for key in _PRICES}
    prefill, sample, cached = prices["prefill"], prices["sample"], prices["cached"]
    if prefill is None or sample is None:
        raise ConfigError(f"the price list has no prefill or no sample price of {name!r}")
    if cached is None and share is not None:
        cached = round(prefill * share, 6)
    origin = {key: str(row.get(key) or defaults[key]) for key in ("provider", "as_of", "source")}
    day_of(origin["as_of"])
    train = prices["train"]
    return ListedModel(
        model=name, prefill=prefill, sample=sample, cached=cached, train=train, **origin
    )


def _dollars(name: str, value: Any) -> float | None:
    """Return a price, also from a text such as "$0.195"; None where there is none."""
    if isinstance(value, str):
        value = value.strip().lstrip("$").replace(",", "")
        value = float(value) if value.replace(".", "", 1).isdigit() else None
    return None if value is None else price_of(name, value)
