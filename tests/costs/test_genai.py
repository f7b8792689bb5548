import sys

import pytest

import art_core as art
from art_core.costs import genai
from art_core.costs.book import PriceBook
from art_core.costs.usage import TokenUsage
from art_core.plugins import builtin

K = 1000
GOLDEN = [
    # 40k at $2, 60k cached at $0.50, 2k out at $8 a million
    ("openai", "openai/gpt-4.1", {"input": 100, "cached": 60, "output": 2}, None, 0.1260),
    ("openai", "o3", {"input": 10, "output": 5}, None, 0.0600),
    ("openai", "o3", {"input": 10, "output": 5}, "flex", 0.0300),
    ("openai", "gpt-5", {"input": 50, "cached": 40, "output": 3}, None, 0.0475),
    ("openai", "gpt-5", {"input": 50, "cached": 40, "output": 3}, "priority", 0.0950),
    (
        "anthropic",
        "claude-sonnet-4",
        {"input": 33, "cached": 20, "written": 8, "output": 1.5},
        None,
        0.0735,
    ),
    (
        "anthropic",
        "claude-sonnet-4-6",
        {"input": 33, "cached": 20, "written": 8, "hour": 8, "output": 1.5},
        None,
        0.0915,
    ),
    ("anthropic", "claude-haiku-4-5", {"input": 20, "output": 1}, None, 0.0250),
    # 10k at $3 and 3k out at $15 a million, halved: (0.030 + 0.045) / 2
    ("anthropic", "claude-sonnet-4-5", {"input": 10, "output": 3}, "batch", 0.0375),
    # 300k is past the 200k tier: all of it at $6, and the answer at $22.50
    ("anthropic", "claude-sonnet-4-5", {"input": 300, "output": 2}, None, 1.845),
    ("google", "gemini-2.5-pro", {"input": 300, "output": 2}, None, 0.78),
]


@pytest.fixture
def book():
    plugins = art.Plugins()
    plugins.register(builtin, "core")
    return PriceBook(plugins)


@pytest.mark.parametrize(("provider", "model", "kilotokens", "tier", "usd"), GOLDEN)
def test_golden_cases_equal_hand_arithmetic(book, provider, model, kilotokens, tier, usd):
    usage = TokenUsage(
        input_tokens=kilotokens["input"] * K,
        output_tokens=int(kilotokens["output"] * K),
        cache_read_tokens=kilotokens.get("cached", 0) * K,
        cache_write_tokens=kilotokens.get("written", 0) * K,
        cache_write_1h_tokens=kilotokens.get("hour", 0) * K,
        service_tier=tier,
    )
    assert book.price(provider, model, usage) == pytest.approx(usd, abs=1e-9)


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

    monkeypatch.setattr(genai, "_library", Library)
    assert genai.book_rates("acme", "free", None) is None


def test_without_the_library_nothing_is_priced_and_that_is_said_once(monkeypatch, caplog):
    genai._library.cache_clear()
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert genai.book_rates("openai", "gpt-4.1", None) is None
    assert genai.book_rates("openai", "gpt-4.1", None) is None
    assert caplog.text.count("pip install 'art-core[prices]'") == 1
    genai._library.cache_clear()


def test_rates_say_where_they_are_from():
    rates = genai.book_rates("openai", "gpt-4.1", None)
    assert rates.source.startswith("genai-prices ")
    assert rates.source.endswith("openai/gpt-4.1")
