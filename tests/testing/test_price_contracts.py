"""The contracts of price books and derived metrics hold for ours, and fail for what breaks them."""

import itertools
import math
import socket
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.plugins import builtin
from art_core.testing.pricing import PricingContract
from art_core.testing.rollup import RollupContract

PER_MILLION = {"input_per_million": 2.0, "output_per_million": 8.0, "source": "house prices"}


class HouseBook:
    """Prices one house's model, reads its responses, rents one device."""

    @art.hookimpl
    def art_usage(self, response, provider):
        if provider != "house" or not isinstance(response, dict) or "words" not in response:
            return None
        return art.TokenUsage(input_tokens=response["words"], output_tokens=response["said"])

    @art.hookimpl
    def art_token_rates(self, provider, model):
        known = (provider, model) == ("house", "butler")
        return art.TokenRates(**PER_MILLION) if known else None

    @art.hookimpl
    def art_gpu_rate(self, device):
        return 0.5 if device == "attic" else None


class RewardPerDollar:
    """Derives one metric from a row and the run's totals."""

    @art.hookimpl
    def art_rollup(self, leaves, totals, split):
        spent = totals.get("costs/cum/all", 0.0)
        if split != "train" or "reward/mean" not in leaves or spent <= 0:
            return None
        return {"reward/per_dollar": leaves["reward/mean"] / spent}


class TestHouseBook(PricingContract):
    priced = (("house", "butler"),)
    devices = ("attic",)
    # 1,000 words at $2 and 500 at $8 a million.
    bills = (("house", "butler", {"words": 1000, "said": 500}, 0.006),)

    @pytest.fixture
    def plugin(self):
        return HouseBook()


class TestOurOwnPrices(PricingContract):
    priced = (("openai", "gpt-4.1"), ("anthropic", "claude-sonnet-4-5"))
    devices = ("H200",)
    # gpt-4.1: 40k fresh at $2, 60k cached at $0.50, 2k out at $8 a million.
    bills = (
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
    )

    @pytest.fixture
    def plugin(self):
        return builtin


TWO_DOLLARS = {"reward/per_dollar": 0.25}


class TestRewardPerDollar(RollupContract):
    examples = (
        ("train", {"reward/mean": 0.5, "costs/gpu": 0.25}, {"costs/cum/all": 2.0}, TWO_DOLLARS),
        ("train", {"reward/mean": 0.5}, {}, {}),
        ("val", {"val/reward": 0.5}, {"costs/cum/all": 2.0}, {}),
    )

    @pytest.fixture
    def plugin(self):
        return RewardPerDollar()


def host(**hooks):
    """A host whose only plugin answers with these functions."""
    marked = {name: staticmethod(art.hookimpl(hook)) for name, hook in hooks.items()}
    plugins, plugin = art.Plugins(strict=True), type("Given", (), marked)()
    plugins.register(plugin, "contract")
    return SimpleNamespace(plugins=plugins, plugin=plugin)


def prices(contract_test, hooks, *more, **cases):
    contract = PricingContract()
    cases = {"priced": [("p", "m")], "devices": ["d"], "bills": ()} | cases
    for name, value in cases.items():
        setattr(contract, name, value)
    getattr(contract, contract_test)(host(**hooks).plugins, *more)


NUMBERS = itertools.count(1)
RATES = art.TokenRates(**PER_MILLION)
FREE = art.TokenRates(input_per_million=0, output_per_million=0, source="s")
NAMELESS = art.TokenRates(input_per_million=1, output_per_million=1)


def no_sinks():
    return []


def connects(provider, model):
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


@pytest.mark.parametrize(
    ("broken", "hooks"),
    [
        ("test_it_has_a_hook_that_prices_and_a_case_to_prove_it", {"art_sinks": no_sinks}),
        ("test_a_price_says_where_it_is_from", {"art_token_rates": lambda: NAMELESS}),
        ("test_a_price_says_where_it_is_from", {"art_token_rates": lambda: None}),
        (
            "test_a_price_is_known_before_the_call_is_made",
            {"art_token_rates": lambda usage: usage and RATES},
        ),
        ("test_a_priced_model_is_not_free", {"art_token_rates": lambda: FREE}),
        ("test_what_it_does_not_know_is_left_to_the_next_book", {"art_token_rates": lambda: FREE}),
        (
            "test_what_it_does_not_know_is_left_to_the_next_book",
            {"art_token_rates": lambda provider: RATES if provider == "p" else None},
        ),
        ("test_what_it_does_not_know_is_left_to_the_next_book", {"art_gpu_rate": lambda: 0.0}),
        ("test_a_device_hour_has_a_price", {"art_gpu_rate": lambda: 0.0}),
        ("test_what_is_no_response_has_no_usage", {"art_usage": lambda: art.TokenUsage()}),
        (
            "test_the_same_question_has_the_same_answer",
            {"art_gpu_rate": lambda: next(NUMBERS)},
        ),
    ],
)
def test_a_price_book_that_breaks_its_contract_is_found_out(broken, hooks):
    with pytest.raises(AssertionError):
        prices(broken, hooks)


def test_a_price_book_that_proves_nothing_is_found_out():
    given = "test_it_has_a_hook_that_prices_and_a_case_to_prove_it"
    prices(given, {"art_gpu_rate": lambda: 1.0})
    with pytest.raises(AssertionError):
        prices(given, {"art_gpu_rate": lambda: 1.0}, devices=(), priced=())


def test_a_price_book_that_asks_the_network_is_found_out(monkeypatch):
    with pytest.raises(art.PluginError, match="must not open a connection"):
        prices("test_it_asks_no_network", {"art_token_rates": connects}, monkeypatch)


def test_a_price_book_that_fails_at_a_chunk_of_its_provider_is_found_out():
    def read(response, provider):
        return art.TokenUsage(output_tokens=response["words"]) if provider == "p" else None

    with pytest.raises(art.PluginError, match="is broken"):
        prices("test_what_is_no_response_has_no_usage", {"art_usage": read})


def test_a_bill_that_does_not_add_up_is_found_out(tmp_path):
    bill = ("p", "m", {"usage": {"prompt_tokens": 10, "completion_tokens": 0}}, 0.25)
    with pytest.raises(AssertionError):
        prices(
            "test_a_response_costs_what_the_bill_says",
            {"art_token_rates": lambda: RATES},
            tmp_path,
            bills=[bill],
        )


def writes(leaves):
    leaves["reward/mine"] = 1.0


@pytest.mark.parametrize(
    ("broken", "rollup"),
    [
        ("test_it_derives_what_the_examples_say", lambda: {"train/x": 2.0}),
        ("test_rows_of_every_kind_are_answered_and_left_as_they_are", writes),
        (
            "test_rows_of_every_kind_are_answered_and_left_as_they_are",
            lambda leaves: {"train/x": leaves["reward/mean"]},
        ),
        ("test_it_only_reads", writes),
        (
            "test_the_same_row_has_the_same_answer",
            lambda: {"train/x": next(NUMBERS)},
        ),
        (
            "test_its_metrics_are_new_finite_and_have_a_section",
            lambda leaves: {"reward/mean": 1.0},
        ),
        ("test_its_metrics_are_new_finite_and_have_a_section", lambda: {"nosection/x": 1.0}),
        ("test_its_metrics_are_new_finite_and_have_a_section", lambda: {"train/x": math.inf}),
    ],
)
def test_a_rollup_that_breaks_its_contract_is_found_out(broken, rollup):
    given, contract = host(art_rollup=rollup), RollupContract()
    contract.examples = [("train", {"reward/mean": 0.5}, {}, {"train/x": 1.0})]
    more = [given.plugin] if "section" in broken else []
    with pytest.raises((AssertionError, art.ArtError)):
        getattr(contract, broken)(given.plugins, *more)


def test_a_rollup_without_examples_or_a_hook_is_found_out():
    contract, derives = RollupContract(), host(art_rollup=lambda: {"train/x": 1.0}).plugins
    with pytest.raises(AssertionError):
        contract.test_it_has_the_hook_and_an_example_to_prove_it(derives)
    contract.examples = [("train", {}, {}, {})]
    contract.test_it_has_the_hook_and_an_example_to_prove_it(derives)
    with pytest.raises(AssertionError):
        contract.test_it_has_the_hook_and_an_example_to_prove_it(art.Plugins())


def test_a_slow_rollup_is_found_out(monkeypatch):
    contract = RollupContract()
    contract.examples = [("train", {}, {}, {})]
    given = host(art_rollup=lambda: None).plugins
    contract.test_it_takes_less_than_a_millisecond(given)
    monkeypatch.setattr("art_core.testing.rollup.LONGEST_CALL_S", 0.0)
    with pytest.raises(AssertionError):
        contract.test_it_takes_less_than_a_millisecond(given)


def test_a_metric_that_does_not_reach_the_rows_is_found_out(tmp_path, monkeypatch):
    contract = RollupContract()
    contract.examples = [("train", {"reward/mean": 0.5}, {}, {})]
    given = host(art_rollup=lambda: {"train/x": 1.0}).plugins
    contract.test_its_metrics_stand_in_the_rows(given, tmp_path / "one")
    monkeypatch.setattr(art.Plugins, "derives", False)
    with pytest.raises(AssertionError):
        contract.test_its_metrics_stand_in_the_rows(given, tmp_path / "two")


@pytest.mark.parametrize("contract", [PricingContract, RollupContract])
def test_a_contract_says_which_fixture_is_missing(contract):
    given = contract.plugin
    with pytest.raises(AssertionError, match="give the fixture plugin"):
        getattr(given, "__wrapped__", given)(contract())
