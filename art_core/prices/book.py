"""Prices of API models: those of genai-prices, or a newer list of the same project.

The package brings its prices with it. `art prices update` saves a newer list, which counts while
the package has the version that it was saved with.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.base.files import replace_json
from art_core.metrics.receipt import TokenRates, TokenUsage
from art_core.prices.tables import cached_file, fetch_json, read_table

log = logging.getLogger("art_core")

_MISSING = "genai-prices is not installed, so API calls have no default prices"
_REMEDY = "pip install 'art-core[prices]'"
_CHECKED = re.compile(r"(?:checked|verified|as of)(?: [^\d.;]{0,40})?? ?(?:on )?(\d{4}-\d\d-\d\d)")


@attrs.frozen(kw_only=True, eq=False)
class ApiPrices:
    """A list of API models. `day` is the newest day on which a price in it was checked, and of a
    saved list the day on which it was read, which is its `as_of`.
    """

    library: Any = attrs.field(repr=False)
    snapshot: Any = attrs.field(repr=False)
    as_of: str | None = None

    @property
    def source(self) -> str:
        """The name and version of the list."""
        return f"genai-prices {self.as_of or self.library.__version__}"

    def day(self) -> str | None:
        """Return the newest day on which its prices are known to have held; None without one."""
        entries = [e for p in self.snapshot.providers for e in (p, *p.models)]
        found = (_CHECKED.findall(entry.price_comments or "") for entry in entries)
        return self.as_of or max((day for days in found for day in days), default=None)

    def models(self) -> Iterator[tuple[str, str]]:
        """Yield the provider and the name of each model."""
        for provider in self.snapshot.providers:
            for model in provider.models:
                yield provider.id, model.id

    def find(self, provider: str, model: str, context: dict[str, str]) -> Any:
        """Return a model with its prices in a context; None for one that is not in the list."""
        usage = self.library.Usage(input_tokens=0)
        try:
            return self.snapshot.calc(usage, model, provider.lower(), None, None, context or None)
        except LookupError:
            return None


@cache
def _library() -> Any:
    try:
        import genai_prices
    except ImportError:
        log.warning("%s. %s", _MISSING, _REMEDY)
        return None
    return genai_prices


def api_prices() -> ApiPrices | None:
    """Return the list in use: the saved one, else the package's; None without the package."""
    library = _library()
    if library is None:
        return None
    # A list that the program itself has set wins: it is kept up to date in the background.
    own = library.data_snapshot.get_snapshot()
    return (None if own.from_auto_update else _saved()) or ApiPrices(library=library, snapshot=own)


def api_prices_path() -> Path:
    """Return the file of the saved list."""
    return cached_file("api_prices.json")


@cache
def _saved() -> ApiPrices | None:
    library = _library()
    path = api_prices_path()
    try:
        stored = orjson.loads(path.read_bytes())
        if stored["version"] != library.__version__:
            return None
        return _read(library, stored["prices"], date.fromisoformat(stored["as_of"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, ConfigError) as error:
        log.warning("%s is not used: %s. Run `art prices update` again.", path, error)
        return None


def _read(library: Any, data: Any, today: date) -> ApiPrices:
    """Read a list as genai-prices publishes it; ConfigError for anything else."""
    try:
        providers = library.types._providers_from_raw(data)  # noqa: SLF001 - it offers no other
        snapshot = library.data_snapshot.DataSnapshot(providers, from_auto_update=False)
        return ApiPrices(library=library, snapshot=snapshot, as_of=today.isoformat())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"no list of API prices that this genai-prices reads: {reason}"
        ) from error


def is_api_list(data: Any) -> bool:
    """Return whether a list has the form in which genai-prices publishes its prices."""
    first = data[0] if isinstance(data, list) and data else None
    return isinstance(first, dict) and isinstance(first.get("models"), list)


def update_api_prices(data: Any, today: date) -> ApiPrices:
    """Save a list for later runs; ConfigError, with nothing changed, for other data."""
    library = _library()
    if library is None:
        raise ConfigError(_MISSING, _REMEDY)
    newer = _read(library, data, today)
    stored = {"version": library.__version__, "as_of": newer.as_of, "prices": data}
    replace_json(api_prices_path(), stored)
    _saved.cache_clear()
    return newer


def fetch_api_list() -> Any:
    """Fetch the newest list of genai-prices; ConfigError without the package or the network."""
    library = _library()
    if library is None:
        raise ConfigError(_MISSING, _REMEDY)
    return fetch_json(library.UpdatePrices().url)


@cache
def provider_at(base_url: str) -> str | None:
    """Return the provider whose API is at an address; None for one that the list does not know."""
    prices = api_prices()
    if prices is None:
        return None
    try:
        found = prices.snapshot.find_provider(None, None, base_url)
    except LookupError:
        return None
    return str(found.id)


def book_rates(
    provider: str, model: str, usage: TokenUsage | None, prices: ApiPrices | None = None
) -> TokenRates | None:
    """Return the rates of a call, by the list in use unless another is given; None for a model, or
    terms of the call, without a price.

    The prompt's length and the terms of the call choose among a model's prices. For terms that the
    list does not have, the price is multiplied by their factor in the term table.
    """
    prices = prices or api_prices()
    usage = usage or TokenUsage()
    found = None if prices is None else prices.find(provider, model, {})
    if prices is None or found is None:
        return None
    listed, factor = _terms(found, usage)
    if factor is None:
        return None
    if listed:
        found = prices.find(provider, model, listed)

    def rate(name: str, times: float = factor) -> float | None:
        value = getattr(found.model_price, name, None)
        return None if value is None else float(_at(value, usage.input_tokens)) * times

    prompt, answer = rate("input_mtok"), rate("output_mtok")
    if not prompt and not answer:
        return None
    # Searches have no discount in a batch.
    search = rate("web_searches_kcount", 1.0)
    terms = read_table("term")
    starts = terms["searches_billed_by_prompt"].get(found.provider.id, ())
    by_prompt = found.model.id.startswith(tuple(starts))
    in_audio, out_audio = rate("input_audio_mtok"), rate("output_audio_mtok")
    if in_audio is None and found.provider.id in terms["audio_prompts_billed_as_text"]:
        in_audio = prompt
    return TokenRates(
        input_per_million=prompt or 0.0,
        output_per_million=answer or 0.0,
        cache_read_per_million=rate("cache_read_mtok"),
        cache_write_per_million=rate("cache_write_mtok"),
        cache_write_1h_per_million=rate("cache_write_1h_mtok"),
        input_audio_per_million=in_audio,
        output_audio_per_million=out_audio,
        cache_read_audio_per_million=rate("cache_audio_read_mtok"),
        input_image_per_million=rate("input_image_mtok"),
        output_image_per_million=rate("output_image_mtok"),
        cache_read_image_per_million=rate("cache_image_read_mtok"),
        web_search_per_thousand=None if by_prompt else search,
        grounded_prompt_per_thousand=search if by_prompt else None,
        file_search_per_thousand=rate("storage_searches_kcount", 1.0),
        source=f"{prices.source}: {found.provider.id}/{found.model.id}",
        as_of=prices.as_of,
    )


def _terms(found: Any, usage: TokenUsage) -> tuple[dict[str, str], float | None]:
    """Return the terms that the book has prices for, and the factor of the others; None for an
    unknown factor.
    """
    listed: dict[str, str] = {}
    factor = 1.0
    for term, value in usage.terms.items():
        variants = getattr(found.model, "price_variants", None) or ()
        batch = term == "service_tier" and value == "batch"
        name = "inference_geo" if term == "geography" else term
        context = {"processing": "batch"} if batch else {name: value}
        if any(variant.when == context for variant in variants):
            listed |= context
            continue
        known = _factor(found.provider.id, found.model.id, term, value)
        if known is None:
            return {}, None
        factor *= known
    return listed, factor


def _factor(provider: str, model: str, term: str, value: str) -> float | None:
    """Return the factor on the list price of tokens; None when it is not known."""
    for entry in read_table("term")["factors"]:
        if entry["provider"] == provider and entry.get(term) == value:
            starts = entry.get("models")
            if starts is None or model.startswith(tuple(starts)):
                return float(entry["factor"])
    return None


def _at(value: Any, input_tokens: int) -> Any:
    """Return a price, or the one of the highest tier that the whole prompt has crossed."""
    if not hasattr(value, "tiers"):
        return value
    crossed = [tier.price for tier in value.tiers if input_tokens > tier.start]
    return crossed[-1] if crossed else value.base
