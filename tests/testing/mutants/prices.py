"""A right price book, and broken ones that differ from it by one fault each."""

from __future__ import annotations

import itertools
import math
import socket
from typing import ClassVar

import attrs
import pytest
from mutants.runner import contracts_of

import art_core as art
from art_core.testing.pricing import PricingContract

LIST = "house prices"
RATES = {
    "butler": art.TokenRates(
        input_per_million=2.0, cache_read_per_million=0.5, output_per_million=8.0, source=LIST
    ),
    "maid": art.TokenRates(input_per_million=0.5, output_per_million=2.0, source=LIST),
}


class RightBook:
    """Prices two models of one house, reads its responses, and rents one device."""

    @art.hookimpl
    def art_token_rates(self, provider, model, usage):
        return self.rates(provider, model, usage)

    @art.hookimpl
    def art_usage(self, response, provider):
        return self.usage(response, provider)

    @art.hookimpl
    def art_gpu_rate(self, device):
        return self.per_hour(device)

    def rates(self, provider, model, usage):
        found = RATES.get(model) if provider == "house" else None
        return self.of_tier(found, usage) if found else None

    def of_tier(self, found, usage):
        batch = usage is not None and usage.service_tier == "batch"
        return scaled(found, 0.5) if batch else found

    def usage(self, response, provider):
        if provider != "house" or not isinstance(response, dict) or "meter" not in response:
            return None
        return self.read(response, response["meter"])

    def read(self, response, meter):
        return art.TokenUsage(
            input_tokens=meter["read"],
            cache_read_tokens=meter["remembered"],
            output_tokens=meter["written"],
            service_tier=response.get("tier"),
        )

    def per_hour(self, device):
        return 0.5 if device == "attic" else None


def scaled(rates, by):
    """The same rates, multiplied."""
    values = attrs.asdict(rates, filter=lambda _, value: isinstance(value, float))
    return attrs.evolve(rates, **{name: value * by for name, value in values.items()})


METER = {"read": 10_000, "remembered": 4_000, "written": 1_000}


class TestRight(PricingContract):
    book_class: ClassVar = RightBook
    priced = (("house", "butler"), ("house", "maid"))
    devices = ("attic",)
    # 6,000 fresh at $2, 4,000 remembered at $0.50 and 1,000 written at $8 a million; then half.
    bills = (
        ("house", "butler", {"meter": METER}, 0.022),
        ("house", "butler", {"meter": METER, "tier": "batch"}, 0.011),
    )

    @pytest.fixture
    def plugin(self):
        return self.book_class()


class KnowsNoModel(RightBook):
    """It prices no model."""

    def rates(self, provider, model, usage):
        return None


class KnowsOneModel(RightBook):
    """It does not price one of the models that it should."""

    def rates(self, provider, model, usage):
        return super().rates(provider, model, usage) if model == "butler" else None


class IgnoresCachedTokens(RightBook):
    """It does not read which tokens came from the cache."""

    def read(self, response, meter):
        return attrs.evolve(super().read(response, meter), cache_read_tokens=0)


class BillsCacheReadsAsPrompt(RightBook):
    """It has no price of its own for cache reads."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and attrs.evolve(found, cache_read_per_million=None)


class CountsCachedTokensBeside(RightBook):
    """It counts cached tokens beside the prompt, not inside it."""

    def read(self, response, meter):
        usage = super().read(response, meter)
        return attrs.evolve(usage, input_tokens=usage.input_tokens + usage.cache_read_tokens)


class PricesPerThousand(RightBook):
    """Its rates are per thousand tokens, not per million."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and scaled(found, 0.001)


class SwapsPromptAndAnswer(RightBook):
    """It prices the prompt as the answer, and the answer as the prompt."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and attrs.evolve(
            found,
            input_per_million=found.output_per_million,
            output_per_million=found.input_per_million,
        )


class IgnoresTheTier(RightBook):
    """It bills batch calls like others."""

    def of_tier(self, found, usage):
        return found


class DoesNotReadTheTier(RightBook):
    """It does not read the service tier of a response."""

    def read(self, response, meter):
        return attrs.evolve(super().read(response, meter), service_tier=None)


class IsFreeForUnknownModels(RightBook):
    """It answers 0 for a model that it does not know."""

    def rates(self, provider, model, usage):
        free = art.TokenRates(input_per_million=0, output_per_million=0, source=LIST)
        return super().rates(provider, model, usage) or (free if provider == "house" else None)


class RaisesForUnknownModels(RightBook):
    """It raises for a model that it does not know."""

    def rates(self, provider, model, usage):
        if model not in RATES:
            raise LookupError(model)
        return super().rates(provider, model, usage)


class IgnoresTheProvider(RightBook):
    """It prices other providers' models of the same name."""

    def rates(self, provider, model, usage):
        return super().rates("house", model, usage)


class MatchesPrefixes(RightBook):
    """It prices every model of its provider."""

    def rates(self, provider, model, usage):
        return super().rates(provider, "maid" if model not in RATES else model, usage)


class IsFreeForUnknownDevices(RightBook):
    """It answers 0 for a device that it does not know."""

    def per_hour(self, device):
        return super().per_hour(device) or 0.0


class PaysForDevices(RightBook):
    """A device costs less than nothing."""

    def per_hour(self, device):
        return -0.5 if device == "attic" else None


class DevicePriceIsNaN(RightBook):
    """A device's price is not a number."""

    def per_hour(self, device):
        return math.nan if device == "attic" else None


class NegativePrice(RightBook):
    """A price is negative."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and attrs.evolve(found, output_per_million=-8.0)


class PriceIsNaN(RightBook):
    """A price is not a number."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and attrs.evolve(found, output_per_million=math.nan)


class ForgetsTheAnswer(RightBook):
    """Answers are free."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and attrs.evolve(found, output_per_million=0.0)


class NeedsTheUsage(RightBook):
    """It knows a price only after the call."""

    def rates(self, provider, model, usage):
        return super().rates(provider, model, usage) if usage else None


class HidesItsSource(RightBook):
    """It does not name the source of its prices."""

    def rates(self, provider, model, usage):
        found = super().rates(provider, model, usage)
        return found and attrs.evolve(found, source="")


class RemembersTheLastModel(RightBook):
    """Its answer depends on the question before."""

    last = None

    def rates(self, provider, model, usage):
        self.last, before = model, self.last
        found = super().rates(provider, model, usage)
        return scaled(found, 2.0) if found and before == "maid" != model else found


class RaisesItsPrices(RightBook):
    """The price of a device rises with each question."""

    def __init__(self):
        self.count = itertools.count(1)

    def per_hour(self, device):
        return 0.5 * next(self.count) if device == "attic" else None


class ChangesTheResponse(RightBook):
    """It takes the counts out of the response."""

    def read(self, response, meter):
        return super().read(response, response.pop("meter"))


class ChangesTheUsage(RightBook):
    """It changes the usage that it is asked about."""

    def of_tier(self, found, usage):
        if usage is not None:
            object.__setattr__(usage, "service_tier", "batch")
        return super().of_tier(found, usage)


class FailsAtChunks(RightBook):
    """It raises at a chunk of a stream that has no counts."""

    def usage(self, response, provider):
        return self.read(response, response["meter"]) if provider == "house" else None


class ReadsEverything(RightBook):
    """It finds usage in objects that are not responses."""

    def usage(self, response, provider):
        return super().usage(response, provider) or art.TokenUsage()


class AsksTheNetwork(RightBook):
    """It opens a connection when it is asked."""

    def per_hour(self, device):
        with socket.socket() as one:
            one.settimeout(0.01)
            one.connect_ex(("127.0.0.1", 9))
        return super().per_hour(device)


class MisspellsItsHooks:
    """Its hooks have other names than the core's."""

    @art.hookimpl
    def art_sinks(self):
        return []


BILL = "test_a_response_costs_what_the_bill_says"
KIND = "test_every_kind_of_token_with_a_price_is_in_a_bill"
FREE = "test_a_priced_model_is_not_free"
MODEL = "test_an_unknown_model_is_left_to_the_next_book"
DEVICE = "test_a_device_hour_has_a_price"
ORDER = "test_answers_do_not_depend_on_the_order_of_questions"
LEFT = "test_responses_and_usage_are_left_as_they_are"
CHUNK = "test_what_is_no_response_has_no_usage"
FAULTS = {
    KnowsNoModel: "test_every_hook_has_an_example",
    KnowsOneModel: "test_a_price_is_known_before_the_call_is_made",
    IgnoresCachedTokens: KIND,
    DoesNotReadTheTier: KIND,
    BillsCacheReadsAsPrompt: BILL,
    CountsCachedTokensBeside: BILL,
    PricesPerThousand: BILL,
    SwapsPromptAndAnswer: BILL,
    IgnoresTheTier: BILL,
    IsFreeForUnknownModels: MODEL,
    RaisesForUnknownModels: MODEL,
    MatchesPrefixes: MODEL,
    IgnoresTheProvider: "test_an_unknown_provider_is_left_to_the_next_book",
    IsFreeForUnknownDevices: "test_an_unknown_device_is_left_to_the_next_book",
    PaysForDevices: DEVICE,
    DevicePriceIsNaN: DEVICE,
    NegativePrice: FREE,
    PriceIsNaN: FREE,
    ForgetsTheAnswer: FREE,
    NeedsTheUsage: "test_a_price_is_known_before_the_call_is_made",
    HidesItsSource: "test_a_price_names_its_source",
    RemembersTheLastModel: ORDER,
    RaisesItsPrices: ORDER,
    ChangesTheResponse: LEFT,
    ChangesTheUsage: LEFT,
    FailsAtChunks: CHUNK,
    ReadsEverything: CHUNK,
    AsksTheNetwork: "test_it_uses_no_network",
    MisspellsItsHooks: "test_it_has_a_hook_that_prices",
}
globals().update(contracts_of(TestRight, FAULTS, "book_class"))
