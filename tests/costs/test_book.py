import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError, PricingError
from art_core.costs.builder import PriceBook
from art_core.hooks.host import Core
from art_core.metrics.receipt import GpuTime, TokenRates, TokenUsage, rates_of

MILLION = TokenUsage(input_tokens=1_000_000)


class Prices:
    @art.hookimpl
    def art_token_rates(self, provider, model, usage):
        return (
            TokenRates(input_per_million=7.0, output_per_million=7.0) if model == "known" else None
        )

    @art.hookimpl
    def art_usage(self, response, provider):
        return MILLION if response == "a million" else None


class Devices:
    @art.hookimpl
    def art_gpu_rate(self, device):
        return 2.0 if device == "card" else None


@pytest.fixture
def book():
    plugins = art.Plugins()
    plugins.register(Prices(), "prices")
    return PriceBook(plugins)


def test_explicit_prices_win_over_registered_ones_and_those_over_plugins(book):
    assert book.price("acme", "known", MILLION) == 7.0
    book.register("acme/known", prompt_per_million=3.0, completion_per_million=3.0)
    assert book.price("acme", "known", MILLION) == 3.0
    explicit = rates_of(
        {"prompt_per_million": 2.0, "completion_per_million": 2.0}, source="explicit"
    )
    assert book.price("acme", "known", MILLION, explicit) == 2.0


def test_what_the_provider_says_wins_over_any_price(book):
    assert book.price("acme", "known", TokenUsage(input_tokens=5, cost_usd=0.125)) == 0.125


@pytest.mark.parametrize("registered", ["judge", "acme/judge"])
@pytest.mark.parametrize("asked", ["judge", "acme/judge"])
def test_a_model_is_found_with_or_without_its_providers_prefix(book, registered, asked):
    book.register(registered, prompt_per_million=1.0, completion_per_million=1.0)
    assert book.price("acme", asked, MILLION) == 1.0


def test_a_missing_price_raises_before_a_call_and_is_said_once_after_one(book, caplog):
    with pytest.raises(PricingError, match="register_model_pricing"):
        book.require("acme", "unheard-of")
    assert book.price("acme", "unheard-of", MILLION) is None
    assert book.price("acme", "unheard-of", MILLION) is None
    assert caplog.text.count("unpriced") == 1


def test_a_known_price_or_an_extractor_lets_the_call_go(book):
    book.require("acme", "known")
    with pytest.raises(PricingError):
        book.require("other", "anything")
    book.register_extractor("other", lambda response: None)
    book.require("other", "anything")


def test_a_response_that_says_nothing_is_unpriced_not_free(book, caplog):
    usage = book.usage({}, "acme")
    assert usage == TokenUsage()
    assert book.price("acme", "known", usage) is None
    assert "has no token counts" in caplog.text


def test_a_device_s_price_says_whether_it_was_given_listed_or_a_plugin_s(book):
    def source(**device):
        return book.bill_gpu(GpuTime(seconds=3600, **device)).rates["source"]

    book.plugins.register(Core(), "core")
    assert source(device="NVIDIA L4", usd_per_hour=0.5) == "explicit"
    assert source(device="NVIDIA L4") == "Modal, https://modal.com/pricing, 2026-09-19"
    book.plugins.register(Devices(), "devices")
    half = book.bill_gpu(GpuTime(device="card", seconds=1800))
    assert (half.usd, half.rates) == (1.0, {"usd_per_hour": 2.0, "source": "plugin"})


def test_a_plugin_may_read_a_providers_usage(book):
    assert book.usage("a million", "acme") == MILLION


@pytest.mark.parametrize(
    "given", [{"prompt_per_million": 1.0}, {"prompt_per_million": 1, "per_token": 2}]
)
def test_prices_that_are_missing_or_unknown_are_an_error_that_lists_the_names(given):
    with pytest.raises(ConfigError, match="cached_prompt_per_million"):
        rates_of(given, source="x")


def test_what_a_provider_says_counts_where_an_extractor_says_nothing(book):
    book.register_extractor("acme", lambda response: response.get("price"))
    response = {"usage": {"prompt_tokens": 10, "cost": 0.25}}
    assert book.usage(response, "acme").cost_usd == 0.25
    assert book.usage(response | {"price": 0.0}, "acme").cost_usd == 0.0


@pytest.mark.parametrize("said", [float("nan"), float("inf"), -1.0, "free", [0.5]])
def test_a_cost_that_cannot_be_one_is_said_and_the_price_counts(book, caplog, said):
    usage = TokenUsage(input_tokens=1_000_000, cost_usd=said)
    believed = book.believed("acme", usage)
    assert believed == TokenUsage(input_tokens=1_000_000)
    assert caplog.text.count("US dollars: ignored") == 1
    assert book.believed("acme", TokenUsage(cost_usd="0.5")).cost_usd == 0.5


def test_an_extractor_that_fails_leaves_the_tokens_to_be_priced(book, caplog):
    book.register_extractor("acme", lambda response: response["bill"]["usd"])
    for _ in range(2):
        assert book.usage("a million", "acme") == MILLION
    assert caplog.text.count("the cost extractor of 'acme' failed (TypeError") == 1
    book.register_extractor("acme", lambda response: 0.25)
    assert book.usage("a million", "acme").cost_usd == 0.25


def test_what_is_billed_beside_the_priced_tokens_is_named_once(book, caplog):
    rates = TokenRates(input_per_million=7.0, output_per_million=7.0)
    odd = TokenUsage(
        input_tokens=1_000_000, web_searches=3, output_audio_tokens=1, unread=("usage.pages",)
    )
    missing = ("usage.pages", "web_searches", "output_audio_tokens")
    for _ in range(2):
        assert book.unread("acme", "known", odd, rates) == missing
    assert book.price("acme", "known", odd) == 7.0
    assert caplog.text.count("partly priced: calls to 'known' of 'acme' were billed for more") == 1
    assert "usage.pages, web_searches, output_audio_tokens" in caplog.text
    assert book.unread("acme", "known", odd, None) == ("usage.pages",)
    assert book.unread("acme", "known", attrs.evolve(odd, cost_usd=1.0), None) == ()


def test_names_are_found_in_upper_and_lower_case(book):
    book.register("Judge-1", prompt_per_million=1.0, completion_per_million=1.0)
    for provider, model in (
        ("Acme", "judge-1"),
        ("acme", "ACME/Judge-1"),
        ("ACME", "acme/judge-1"),
    ):
        assert book.price(provider, model, MILLION) == 1.0


def test_a_name_that_is_no_text_is_refused_or_read_as_one(book):
    with pytest.raises(ConfigError, match="by a model's name, got None"):
        book.register(None, prompt_per_million=1.0, completion_per_million=1.0)
    assert book.price(None, "known", MILLION) == 7.0
    assert GpuTime(device=7, seconds=1.0).device == "7"


def test_an_extractor_is_found_in_upper_and_lower_case(book):
    book.register_extractor("OpenAI", lambda response: response["usd"])
    book.require("openai", "unknown")
    assert book.usage({"usd": 0.5}, "OPENAI").cost_usd == 0.5


def test_a_provider_that_names_its_costs_needs_no_price_before_the_call(book):
    book.require("openrouter", "nobody/knows-this")
    assert book.price("openrouter", "nobody/knows-this", MILLION) is None


def test_a_call_without_a_price_says_under_which_terms_it_was_made(book, caplog):
    usage = TokenUsage(input_tokens=1, service_tier="Scale", speed="standard", geography="eu")
    assert book.price("acme", "unknown", usage) is None
    assert "'unknown' of 'acme' in service tier 'scale' and geography 'eu';" in caplog.text
