"""The contracts of price books and derived metrics: our own prices, and what authors must give."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.hooks.host import Core
from art_core.testing.pricing import PricingContract
from art_core.testing.rollup import RollupContract

sys.path.append(str(Path(__file__).parent))
from mutants.prices import METER, RightBook


class TestOurOwnPrices(PricingContract):
    priced = (("openai", "gpt-4.1"), ("anthropic", "claude-sonnet-4-5"))
    devices = ("H200",)
    bills = (
        # 40k fresh at $2, 60k cached at $0.50, 2k out at $8 a million.
        (
            "openai",
            "gpt-4.1",
            {
                "usage": {
                    "prompt_tokens": 100_000,
                    "completion_tokens": 2_000,
                    "prompt_tokens_details": {"cached_tokens": 60_000},
                }
            },
            0.126,
        ),
        # 1,000 in at $3.50 and 100 out at $14 a million.
        (
            "openai",
            "gpt-4.1",
            {
                "service_tier": "priority",
                "usage": {"prompt_tokens": 1_000, "completion_tokens": 100},
            },
            0.0049,
        ),
        # 1,000 in at $1 and 100 out at $4 a million.
        (
            "openai",
            "gpt-4.1",
            {
                "service_tier": "flex",
                "usage": {"prompt_tokens": 1_000, "completion_tokens": 100},
            },
            0.0014,
        ),
        # Half of 1,000 in at $3 and 100 out at $15 a million.
        (
            "anthropic",
            "claude-sonnet-4-5",
            {"usage": {"input_tokens": 1_000, "output_tokens": 100, "service_tier": "batch"}},
            0.00225,
        ),
        # 1,000 in at $2 and 100 out at $8 a million; one search at $2.50 a thousand.
        (
            "openai",
            "gpt-4.1",
            {
                "output": [{"type": "file_search_call"}],
                "usage": {"input_tokens": 1_000, "output_tokens": 100},
            },
            0.0053,
        ),
        # 1.1 times 1,000 in at $3 and 100 out at $15 a million.
        (
            "anthropic",
            "claude-sonnet-4-5",
            {"usage": {"input_tokens": 1_000, "output_tokens": 100, "inference_geo": "us"}},
            0.00495,
        ),
        # 10k fresh at $3, 20k read at $0.30, 5k written at $3.75 and 3k for an hour at $6, 1k out
        # at $15 a million; two searches at $10 a thousand.
        (
            "anthropic",
            "claude-sonnet-4-5",
            {
                "usage": {
                    "input_tokens": 10_000,
                    "cache_read_input_tokens": 20_000,
                    "cache_creation_input_tokens": 8_000,
                    "cache_creation": {"ephemeral_1h_input_tokens": 3_000},
                    "output_tokens": 1_000,
                    "server_tool_use": {"web_search_requests": 2},
                }
            },
            0.10775,
        ),
    )

    @pytest.fixture
    def plugin(self):
        return Core()


def host(**hooks):
    """A host whose only plugin answers with these functions."""
    marked = {name: staticmethod(art.hookimpl(hook)) for name, hook in hooks.items()}
    plugins, plugin = art.Plugins(strict=True), type("Given", (), marked)()
    plugins.register(plugin, "contract")
    return SimpleNamespace(plugins=plugins, plugin=plugin)


RATES = art.TokenRates(input_per_million=2.0, output_per_million=8.0, source="house prices")
READS = {"art_usage": lambda response, provider: RightBook().usage(response, provider)}
PRICES = {"art_token_rates": lambda provider, model: RATES if provider == "house" else None}
RENTS = {"art_gpu_rate": lambda: 1.0}
BUTLER = ("house", "butler")
BILL = (*BUTLER, {"meter": METER}, 0.028)


def examples(hooks, **given):
    contract = PricingContract()
    for name, value in given.items():
        setattr(contract, name, value)
    contract.test_every_hook_has_an_example(host(**hooks).plugins)


@pytest.mark.parametrize(
    ("hooks", "given", "asked"),
    [
        (RENTS, {}, "give `devices`"),
        (PRICES, {}, "give `priced`"),
        (PRICES, {"priced": [("other", "model")]}, "give `priced`"),
        (PRICES, {"priced": [BUTLER]}, "give `bills`, or state has_no_bills = True"),
        (PRICES, {"bills": [("other", "model", {}, 1.0)]}, "give `priced`"),
        (READS, {}, "art_usage reads no response of `bills`"),
        (PRICES | READS, {"bills": [(*BUTLER, {}, 0.0)]}, "art_usage reads no response"),
    ],
)
def test_a_hook_without_an_example_fails(hooks, given, asked):
    with pytest.raises(pytest.fail.Exception, match=asked):
        examples(hooks, **given)


@pytest.mark.parametrize(
    ("hooks", "given"),
    [
        (RENTS, {"devices": ["attic"]}),
        (PRICES, {"priced": [BUTLER], "has_no_bills": True}),
        (PRICES, {"bills": [BILL]}),
        (READS | PRICES, {"bills": [BILL]}),
        (READS, {"has_no_bills": True}),
    ],
)
def test_examples_or_a_statement_are_enough(hooks, given):
    examples(hooks, **given)


def test_kinds_of_tokens_without_a_bill_are_stated():
    cached = art.TokenRates(input_per_million=2, output_per_million=8, cache_read_per_million=1)
    contract, book = PricingContract(), host(art_token_rates=lambda: cached).plugins
    contract.priced = [BUTLER]
    with pytest.raises(pytest.fail.Exception, match="no bill has cache_read_tokens"):
        contract.test_every_kind_of_token_with_a_price_is_in_a_bill(book)
    contract.kinds_without_bill = ["cache_read_tokens"]
    contract.test_every_kind_of_token_with_a_price_is_in_a_bill(book)
    contract.kinds_without_bill, contract.has_no_bills = (), True
    contract.test_every_kind_of_token_with_a_price_is_in_a_bill(book)


def test_a_book_that_prices_any_provider_is_stated():
    contract, book = PricingContract(), host(art_token_rates=lambda: RATES).plugins
    contract.priced = [BUTLER]
    with pytest.raises(AssertionError):
        contract.test_an_unknown_provider_is_left_to_the_next_book(book)
    contract.prices_any_provider = True
    with pytest.raises(pytest.skip.Exception, match="prices_any_provider is stated"):
        contract.test_an_unknown_provider_is_left_to_the_next_book(book)


def test_a_rollup_without_an_example_that_derives_something_fails():
    contract = RollupContract()
    for given in ((), [("train", {}, {}, {})]):
        contract.examples = given
        with pytest.raises(pytest.fail.Exception, match="give `examples`"):
            contract.test_an_example_derives_something()


def test_a_metric_that_does_not_reach_the_rows_is_found(tmp_path, monkeypatch):
    contract = RollupContract()
    contract.examples = [("train", {"reward/mean": 0.5}, {}, {})]
    given = host(art_rollup=lambda: {"train/x": 1.0}).plugins
    contract.test_its_metrics_are_in_the_rows_of_a_run(given, tmp_path / "one")
    monkeypatch.setattr(art.Plugins, "derives", False)
    with pytest.raises(AssertionError):
        contract.test_its_metrics_are_in_the_rows_of_a_run(given, tmp_path / "two")


@pytest.mark.parametrize("contract", [PricingContract, RollupContract])
def test_a_contract_names_the_fixture_that_is_missing(contract):
    given = contract.plugin
    with pytest.raises(AssertionError, match="give the fixture plugin"):
        getattr(given, "__wrapped__", given)(contract())
