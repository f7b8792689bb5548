import json
import sys
from datetime import date

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.costs.builder import PriceBook
from art_core.hooks.host import Core
from art_core.metrics.receipt import TokenUsage
from art_core.prices import book

TODAY = date(2026, 12, 1)


@pytest.fixture
def prices():
    plugins = art.Plugins()
    plugins.register(Core(), "core")
    return PriceBook(plugins)


@pytest.fixture
def own_list(tmp_path, monkeypatch):
    """Save a list in a cache of its own; return its path."""
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    book._saved.cache_clear()

    def save(data, today=TODAY):
        book.update_api_prices(data, today)
        return book.api_prices_path()

    yield save
    monkeypatch.undo()
    book._saved.cache_clear()


def listed(provider, models):
    """Return a list as genai-prices publishes it, with prices of input and output."""
    entries = [
        {"id": name, "match": {"equals": name}, "prices": prices} for name, prices in models.items()
    ]
    pattern = rf"https://api\.{provider}\.com"
    return [{"id": provider, "name": provider, "api_pattern": pattern, "models": entries}]


def test_an_unknown_model_or_provider_is_unpriced_never_free(prices):
    assert prices.price("anthropic", "claude-zonk", TokenUsage(input_tokens=1)) is None
    assert prices.price("zonk", "gpt-4.1", TokenUsage(input_tokens=1)) is None


def test_a_model_that_the_book_lists_without_a_price_is_unpriced(own_list):
    own_list(listed("acme", {"free": {}}))
    assert book.book_rates("acme", "free", None) is None


def test_without_the_library_nothing_is_priced_and_that_is_said_once(monkeypatch, caplog):
    book._library.cache_clear()
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert book.book_rates("openai", "gpt-4.1", None) is None
    assert book.book_rates("openai", "gpt-4.1", None) is None
    assert caplog.text.count("pip install 'art-core[prices]'") == 1
    book._library.cache_clear()


def test_rates_say_where_they_are_from():
    rates = book.book_rates("openai", "gpt-4.1", None)
    assert rates.source.startswith("genai-prices ")
    assert rates.source.endswith("openai/gpt-4.1")


def test_web_searches_have_a_price_by_the_thousand_in_a_batch_too(prices):
    usage = TokenUsage(input_tokens=100_000, web_searches=3, service_tier="batch")
    paid = prices.price("anthropic", "claude-sonnet-4-5", usage)
    assert paid == pytest.approx(0.1 * 1.5 + 3 * 0.01, abs=1e-12)


def test_a_saved_list_counts_from_then_on_with_its_day(own_list):
    assert book.book_rates("acme", "m", None) is None
    own_list(listed("acme", {"m": {"input_mtok": 1, "output_mtok": 2.5}}))
    rates = book.book_rates("acme", "m", None)
    assert (rates.input_per_million, rates.output_per_million) == (1.0, 2.5)
    assert (rates.source, rates.as_of) == ("genai-prices 2026-12-01: acme/m", "2026-12-01")
    assert book.api_prices().day() == "2026-12-01"
    assert book.book_rates("openai", "gpt-4.1", None) is None


def test_a_list_that_was_saved_with_another_version_of_the_package_does_not_count(own_list):
    path = own_list(listed("acme", {"m": {"input_mtok": 1}}))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.0.1"}))
    book._saved.cache_clear()
    assert book.book_rates("acme", "m", None) is None
    assert book.book_rates("openai", "gpt-4.1", None).as_of is None


def test_a_list_that_the_program_keeps_up_to_date_itself_wins(own_list):
    own_list(listed("acme", {"m": {"input_mtok": 1}}))
    library = book._library()
    newer = book._read(library, listed("acme", {"m": {"input_mtok": 3}}), TODAY).snapshot
    newer.from_auto_update = True
    library.data_snapshot.set_custom_snapshot(newer)
    try:
        assert book.book_rates("acme", "m", None).input_per_million == 3.0
    finally:
        library.data_snapshot.set_custom_snapshot(None)


def test_a_saved_list_that_is_broken_is_named_and_the_package_counts(own_list, caplog):
    own_list(listed("acme", {"m": {"input_mtok": 1}})).write_text('{"version": 1')
    book._saved.cache_clear()
    assert book.book_rates("openai", "gpt-4.1", None).input_per_million == 2.0
    assert "Run `art prices update` again" in caplog.text


@pytest.mark.parametrize("data", [[1], [{"id": "acme", "models": [{"id": 1}]}], 3])
def test_what_is_no_list_of_api_prices_is_refused_and_changes_nothing(own_list, data):
    with pytest.raises(ConfigError, match="no list of API prices that this genai-prices reads"):
        book.update_api_prices(data, TODAY)
    assert not book.api_prices_path().exists()


def test_the_package_s_own_list_is_as_old_as_the_newest_check_in_it(own_list):
    day = book.api_prices().day()
    assert day >= "2026-11-03"
    bare = book._read(book._library(), listed("acme", {"m": {}}), TODAY)
    assert book.attrs.evolve(bare, as_of=None).day() is None


def test_without_the_package_no_list_is_read(monkeypatch):
    monkeypatch.setattr(book, "_library", lambda: None)
    for ask in (book.fetch_api_list, lambda: book.update_api_prices([], TODAY)):
        with pytest.raises(ConfigError, match="genai-prices is not installed"):
            ask()
    assert book.api_prices() is None
