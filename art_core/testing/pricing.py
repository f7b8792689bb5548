"""What every price book does. Subclass `PricingContract`, give `plugin`, and say what it prices."""

from __future__ import annotations

import itertools
import math
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from art_core.costs.rates import price
from art_core.costs.usage import TokenUsage
from art_core.model import Model
from art_core.plugins.host import Plugins

PRICE_HOOKS = frozenset({"art_usage", "art_token_rates", "art_gpu_rate"})
SOME_TOKENS = TokenUsage(input_tokens=1_000, output_tokens=100)
NOT_RESPONSES: tuple[Any, ...] = (None, {}, [], "text", object(), {"usage": None})
"""What says nothing of usage: as little as most chunks of a streamed response."""
NOBODY = "nobody-has-this-name"

Bill = tuple[str, str, Any, float]
"""Provider, model, response, and the US dollars that it costs by hand."""


class PricingContract:
    """Fixture to give: `plugin`, the module or object with the hooks.

    `priced` names (provider, model) pairs with a price, `devices` names with a price per hour;
    `bills` are golden cases: (provider, model, response, US dollars), worked out by hand.
    """

    priced: ClassVar[Sequence[tuple[str, str]]] = ()
    devices: ClassVar[Sequence[str]] = ()
    bills: ClassVar[Sequence[Bill]] = ()

    @pytest.fixture
    def plugin(self) -> object:
        """Return the plugin's module, or an object with its hooks."""
        raise AssertionError("give the fixture plugin")

    @pytest.fixture
    def book(self, plugin: object) -> Plugins:
        """Return a host that holds this plugin alone, and raises what is broken."""
        book = Plugins(strict=True)
        book.register(plugin, "contract")
        return book

    def test_it_has_a_hook_that_prices_and_a_case_to_prove_it(self, book: Plugins) -> None:
        """Hooks are spelt as the core spells them, and `priced`, `devices` or `bills` is given."""
        (info,) = book.infos()
        assert PRICE_HOOKS & set(info.hooks)
        assert self.priced or self.devices or self.bills

    def test_a_price_says_where_it_is_from(self, book: Plugins) -> None:
        """Its own name: "explicit" and "registered" stand for prices that users give."""
        for provider, model in self.priced:
            rates = book.token_rates(provider, model, SOME_TOKENS)
            assert rates is not None, f"no price for {provider} {model}"
            assert rates.source not in ("", "explicit", "registered")

    def test_a_price_is_known_before_the_call_is_made(self, book: Plugins) -> None:
        """The core asks without usage first: a missing price stops a call before it costs
        anything.
        """
        for provider, model in self.priced:
            assert book.token_rates(provider, model, None) is not None

    def test_a_priced_model_is_not_free(self, book: Plugins) -> None:
        """A book that answers 0 for what it does not know loses money without a word."""
        for provider, model in self.priced:
            rates = book.token_rates(provider, model, SOME_TOKENS)
            assert rates is not None and price(SOME_TOKENS, rates) > 0

    def test_what_it_does_not_know_is_left_to_the_next_book(self, book: Plugins) -> None:
        """None, never 0, for an unknown model, provider or device."""
        assert book.token_rates(NOBODY, NOBODY, SOME_TOKENS) is None
        assert book.token_rates(NOBODY, NOBODY, None) is None
        assert book.gpu_rate(NOBODY) is None
        for provider, _ in self.priced:
            assert book.token_rates(provider, NOBODY, SOME_TOKENS) is None

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

    def test_the_same_question_has_the_same_answer(self, book: Plugins) -> None:
        """What a run cost does not hang on how often it was asked."""
        for provider, model in self.priced:
            first, second = (book.token_rates(provider, model, SOME_TOKENS) for _ in range(2))
            assert first == second
        for device in self.devices:
            assert book.gpu_rate(device) == book.gpu_rate(device)

    def test_it_asks_no_network(self, book: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        """Prices are asked in the middle of a rollout."""

        def refuse(*_: Any) -> NoReturn:
            raise AssertionError("a price book must not open a connection")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket.socket, "connect_ex", refuse)
        for provider, model in self.priced:
            book.token_rates(provider, model, SOME_TOKENS)
        for device in self.devices:
            book.gpu_rate(device)

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
