"""The contract of price books. Subclass `PricingContract`; give `plugin` and examples."""

from __future__ import annotations

import copy
import itertools
import math
import socket
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import attrs
import pytest

from art_core.hooks.host import Plugins
from art_core.metrics.readers import read_usage
from art_core.metrics.receipt import TokenRates, TokenUsage, price
from art_core.model.model import Model
from art_core.testing.statements import Contract, Setting

PRICE_HOOKS = frozenset({"art_usage", "art_token_rates", "art_gpu_rate"})
SOME_TOKENS = TokenUsage(input_tokens=1_000, output_tokens=100)
NOT_RESPONSES: tuple[Any, ...] = (None, {}, [], "text", object(), {"usage": None})
"""Responses without usage, as are most chunks of a streamed one."""
NOBODY = "nobody-has-this-name"
SEARCHES = {
    "file_search_per_thousand": "file_searches",
    "grounded_prompt_per_thousand": "grounded_prompts",
    "web_search_per_thousand": "web_searches",
}
KINDS = SEARCHES | {
    field.name: field.name.replace("_per_million", "_tokens")
    for field in attrs.fields(TokenRates)
    if field.name.endswith("_per_million")
    and field.default is None
    and field.name != "train_per_million"  # no response has it
}
"""Rates that only some models have, and the count of a usage that each one prices."""
TERMS = (
    ("service_tier", "flex"),
    ("service_tier", "priority"),
    ("service_tier", "batch"),
    ("speed", "fast"),
    ("geography", "us"),
)
"""Terms of a call on which a price may depend."""

Bill = tuple[str, str, Any, float]
"""Provider, model, response, and the US dollars that it costs, worked out by hand."""


class PricingContract(Contract):
    """The tests of a price book. Fixture to give: `plugin`, the module or object with the hooks."""

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("priced", "pairs of provider and model that the book prices"),
        Setting("devices", "names of devices that the book prices per hour"),
        Setting(
            "bills",
            "examples worked out by hand: provider, model, response, US dollars. They need a "
            "response for each kind of token that has a price of its own",
        ),
        Setting(
            "has_no_bills",
            "no response is at hand to work out a bill from",
            "no amount of dollars was compared",
        ),
        Setting(
            "kinds_without_bill",
            'kinds of tokens that have a price and no bill, such as `"web_searches"`, and terms, '
            'such as `"flex"`',
            "the amounts for these were not compared",
        ),
        Setting(
            "prices_any_provider",
            "the book prices a model whatever its provider is called",
            "unknown providers were not tried",
        ),
    )
    priced: ClassVar[Sequence[tuple[str, str]]] = ()
    devices: ClassVar[Sequence[str]] = ()
    bills: ClassVar[Sequence[Bill]] = ()
    has_no_bills: ClassVar[bool] = False
    kinds_without_bill: ClassVar[Collection[str]] = ()
    prices_any_provider: ClassVar[bool] = False

    @pytest.fixture
    def plugin(self) -> object:
        """Return the plugin's module, or an object with its hooks."""
        raise AssertionError("give the fixture plugin")

    @pytest.fixture
    def book(self, plugin: object) -> Plugins:
        """Return a host that holds only this plugin, and raises what is broken."""
        book = Plugins(strict=True)
        book.register(plugin, "contract")
        return book

    def test_it_has_a_hook_that_prices(self, book: Plugins) -> None:
        """The hooks have the names that the core knows."""
        assert PRICE_HOOKS & _hooks(book)

    def test_every_hook_has_an_example(self, book: Plugins) -> None:
        """`priced` and `bills` for token rates, `bills` for usage, `devices` for device rates."""
        hooks = _hooks(book)
        if "art_token_rates" in hooks and not self._pairs(book):
            pytest.fail("the book prices nothing that the test knows: give `priced`")
        if "art_gpu_rate" in hooks and not self.devices:
            pytest.fail("art_gpu_rate is not tested: give `devices`")
        if "art_token_rates" in hooks and not (self.bills or self.has_no_bills):
            pytest.fail("no amount is tested: give `bills`, or state has_no_bills = True")
        readers = [book.usage(response, provider) for provider, _, response, _ in self.bills]
        if "art_usage" in hooks and not (any(readers) or self.has_no_bills):
            pytest.fail("art_usage reads no response of `bills`: give one that it reads")

    def test_every_kind_of_token_with_a_price_is_in_a_bill(self, book: Plugins) -> None:
        """Cache reads and writes, audio, images, searches, and terms such as a service tier."""
        wanted = {kind for pair in self._pairs(book) for kind in _kinds(book, *pair)}
        billed = {kind for usage in self._usages(book) for kind in _kinds_of(usage)}
        missing = wanted - billed - set(self.kinds_without_bill)
        if missing and not self.has_no_bills:
            pytest.fail(
                f"no bill has {', '.join(sorted(missing))}, which the book prices: give one, or "
                "state kinds_without_bill"
            )

    def test_a_price_names_its_source(self, book: Plugins) -> None:
        """A name of its own: "explicit" and "registered" stand for prices that users give."""
        for provider, model in self.priced:
            rates = _known(book, provider, model, SOME_TOKENS)
            assert rates.source not in ("", "explicit", "registered")

    def test_a_price_is_known_before_the_call_is_made(self, book: Plugins) -> None:
        """The core asks without usage first: a missing price stops a call before it costs
        anything.
        """
        for provider, model in self.priced:
            _known(book, provider, model, None)

    def test_a_priced_model_is_not_free(self, book: Plugins) -> None:
        """Prompt and answer both cost more than 0."""
        for provider, model in self.priced:
            rates = _known(book, provider, model, SOME_TOKENS)
            assert price(attrs.evolve(SOME_TOKENS, output_tokens=0), rates) > 0
            assert price(attrs.evolve(SOME_TOKENS, input_tokens=0), rates) > 0

    def test_an_unknown_model_is_left_to_the_next_book(self, book: Plugins) -> None:
        """The answer is None, and never 0."""
        for provider in {NOBODY, *(provider for provider, _ in self.priced)}:
            for usage in (SOME_TOKENS, None):
                assert book.token_rates(provider, NOBODY, usage) is None

    def test_an_unknown_provider_is_left_to_the_next_book(self, book: Plugins) -> None:
        """Another provider may have a model of the same name, at another price."""
        if self.prices_any_provider:
            pytest.skip("prices_any_provider is stated: unknown providers were not tried")
        for _, model in self.priced:
            for usage in (SOME_TOKENS, None):
                assert book.token_rates(NOBODY, model, usage) is None

    def test_an_unknown_device_is_left_to_the_next_book(self, book: Plugins) -> None:
        """The answer is None, and never 0."""
        assert book.gpu_rate(NOBODY) is None

    def test_a_device_hour_has_a_price(self, book: Plugins) -> None:
        """In US dollars, finite and above 0."""
        for device in self.devices:
            usd = book.gpu_rate(device)
            assert usd is not None and 0 < usd < math.inf

    def test_what_is_no_response_has_no_usage(self, book: Plugins) -> None:
        """`art_usage` answers None to what it can't read, and raises nothing."""
        providers = {NOBODY, *(p for p, _ in self.priced), *(bill[0] for bill in self.bills)}
        for provider, response in itertools.product(sorted(providers), NOT_RESPONSES):
            assert book.usage(response, provider) is None

    def test_responses_and_usage_are_left_as_they_are(self, book: Plugins) -> None:
        """The caller goes on with them."""
        for provider, model, response, _ in self.bills:
            before = copy.deepcopy(response)
            read = book.usage(response, provider)
            assert response == before
            usage = attrs.evolve(read or SOME_TOKENS)
            book.token_rates(provider, model, usage)
            assert usage == (read or SOME_TOKENS)

    def test_answers_do_not_depend_on_the_order_of_questions(self, book: Plugins) -> None:
        """The costs of a run do not depend on earlier questions."""
        pairs = [*self.priced, (NOBODY, NOBODY)]
        questions = [(*pair, usage) for pair in pairs for usage in (None, SOME_TOKENS)]
        forth = [book.token_rates(*question) for question in questions]
        back = [book.token_rates(*question) for question in reversed(questions)]
        assert forth == back[::-1]
        devices = [*self.devices, NOBODY]
        there = [book.gpu_rate(device) for device in devices]
        assert there == [book.gpu_rate(device) for device in reversed(devices)][::-1]

    def test_it_uses_no_network(self, book: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        """Prices are asked for in the middle of a rollout."""

        def refuse(*_: Any) -> NoReturn:
            raise AssertionError("a price book must not open a connection")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        for provider, model in self.priced:
            book.token_rates(provider, model, SOME_TOKENS)
        for device in self.devices:
            book.gpu_rate(device)
        for provider, _, response, _ in self.bills:
            book.usage(response, provider)

    def test_a_response_costs_what_the_bill_says(self, book: Plugins, tmp_path: Path) -> None:
        """From the response to the dollars in a row, as a run pays for it."""
        for number, (provider, model_name, response, usd) in enumerate(self.bills):
            model = Model(
                name=f"bill-{number}", project="p", base_path=tmp_path, sinks=[], plugins=book
            )
            builder = model.metrics_builder("train")
            builder.add_response_cost("judge", response, provider=provider, model_name=model_name)
            row = model.run.record("train", 1)
            model.run.close()
            assert row.metrics["costs/train/judge"] == pytest.approx(usd, rel=1e-9)

    def _pairs(self, book: Plugins) -> list[tuple[str, str]]:
        """Return the pairs of provider and model in `priced` and `bills` that the book prices."""
        pairs = {*self.priced, *((provider, model) for provider, model, _, _ in self.bills)}
        return sorted(pair for pair in pairs if book.token_rates(*pair, SOME_TOKENS) is not None)

    def _usages(self, book: Plugins) -> list[TokenUsage]:
        read = (book.usage(r, provider) or read_usage(r) for provider, _, r, _ in self.bills)
        return [usage for usage in read if usage is not None]


def _hooks(book: Plugins) -> set[str]:
    return {hook for info in book.infos() for hook in info.hooks}


def _known(book: Plugins, provider: str, model: str, usage: TokenUsage | None) -> TokenRates:
    rates = book.token_rates(provider, model, usage)
    assert rates is not None, f"no price for {provider} {model}"
    return rates


def _kinds(book: Plugins, provider: str, model: str) -> Iterator[str]:
    """Yield the kinds of tokens, and the terms, for which a model has a price of its own."""
    rates = _known(book, provider, model, SOME_TOKENS)
    yield from (kind for name, kind in KINDS.items() if getattr(rates, name) is not None)
    for term, value in TERMS:
        given: dict[str, Any] = {term: value}
        usage = attrs.evolve(SOME_TOKENS, **given)
        found = book.token_rates(provider, model, usage)
        if found is not None and _amounts(found) != _amounts(rates):
            yield value


def _amounts(rates: TokenRates) -> dict[str, float | None]:
    return {name: value for name, value in attrs.asdict(rates).items() if "_per_" in name}


def _kinds_of(usage: TokenUsage) -> Iterator[str]:
    yield from (kind for kind in KINDS.values() if getattr(usage, kind))
    yield from (value for term, value in TERMS if getattr(usage, term) == value)
