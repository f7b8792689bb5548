import sys

import pytest

import art_core as art
from art_core.costs.builder import PriceBook
from art_core.hooks.host import Core
from art_core.metrics.receipt import TokenUsage
from art_core.prices import tables


@pytest.fixture
def book():
    plugins = art.Plugins()
    plugins.register(Core(), "core")
    return PriceBook(plugins)


def test_an_unknown_model_or_provider_is_unpriced_never_free(book):
    assert book.price("anthropic", "claude-zonk", TokenUsage(input_tokens=1)) is None
    assert book.price("zonk", "gpt-4.1", TokenUsage(input_tokens=1)) is None


def test_a_model_that_the_book_lists_without_a_price_is_unpriced(monkeypatch):
    class Free:
        input_mtok = output_mtok = None

    class Found:
        model_price = Free()

    class Library:
        Usage = dict

        @staticmethod
        def calc_price(*_, **__):
            return Found()

    monkeypatch.setattr(tables, "_library", Library)
    assert tables.book_rates("acme", "free", None) is None


def test_without_the_library_nothing_is_priced_and_that_is_said_once(monkeypatch, caplog):
    tables._library.cache_clear()
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert tables.book_rates("openai", "gpt-4.1", None) is None
    assert tables.book_rates("openai", "gpt-4.1", None) is None
    assert caplog.text.count("pip install 'art-core[prices]'") == 1
    tables._library.cache_clear()


def test_rates_say_where_they_are_from():
    rates = tables.book_rates("openai", "gpt-4.1", None)
    assert rates.source.startswith("genai-prices ")
    assert rates.source.endswith("openai/gpt-4.1")


def test_web_searches_have_a_price_by_the_thousand_in_a_batch_too(book):
    usage = TokenUsage(input_tokens=100_000, web_searches=3, service_tier="batch")
    paid = book.price("anthropic", "claude-sonnet-4-5", usage)
    assert paid == pytest.approx(0.1 * 1.5 + 3 * 0.01, abs=1e-12)
