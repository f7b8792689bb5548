from __future__ import annotations

import csv

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.costs.builder import PriceBook
from art_core.log.reader import LoggedRun
from art_core.metrics.receipt import GpuTime, Receipt, TokenRates, gpu_receipt
from art_core.reports.reprice import Prices, gpu_price, read_prices, reprice


class Book:
    """A dollar a million tokens in prompts of up to 100 tokens, two in longer ones."""

    @art.hookimpl
    def art_token_rates(self, provider, model, usage):
        if model == "known":
            dollars = 1.0 if usage.input_tokens <= 100 else 2.0
            return TokenRates(input_per_million=dollars, output_per_million=0.0)
        return None

    @art.hookimpl
    def art_gpu_rate(self, device):
        return 36.0 if device == "card" else None


@pytest.fixture
def book():
    plugins = art.Plugins()
    plugins.register(Book(), "book")
    return PriceBook(plugins)


def tokens(item="known", **given):
    given = {"leaf": "costs/train/j", "provider": "p", "input_tokens": 1_000_000} | given
    return Receipt(item=item, **given)


def repriced(log, prices):
    path, sums = reprice(LoggedRun(log.path.parent), prices)
    assert path == log.path.with_name("repriced.csv")
    return sums


def test_receipts_are_priced_anew_and_dollars_without_one_stay(log, book):
    log.add(
        costs__train__j=0.75, costs__train=0.75, costs__own=0.25, costs__all=1.0,
        costs__cum__all=1.0, receipts=[tokens(usd=0.5, calls=10_000)],
    )  # fmt: skip
    before = log.path.read_bytes()
    assert repriced(log, Prices(book=book)) == {
        "costs/own": (0.25, 0.25),
        "costs/train/j": (0.75, 1.25),
    }
    assert log.path.read_bytes() == before
    with log.path.with_name("repriced.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[1] == {
        "seq": "1", "attempt": "1", "step": "1", "split": "train", "leaf": "costs/train/j",
        "booked_usd": "0.75", "repriced_usd": "1.25",
    }  # fmt: skip


@pytest.mark.parametrize(("calls", "usd"), [(10_000, 1.0), (9_000, 2.0)])
def test_the_average_call_chooses_a_price_that_depends_on_length(book, calls, usd):
    assert Prices(book=book).usd(tokens(usd=9.0, calls=calls)) == usd


def test_the_price_of_a_call_that_had_none_is_added_under_its_leaf(log, book):
    log.add(reward__mean=0.5, receipts=[tokens(calls=10_000)])
    assert repriced(log, Prices(book=book)) == {"costs/train/j": (0.0, 1.0)}


@pytest.mark.parametrize(
    "receipt",
    [
        tokens(usd=9.0, reported=True),
        tokens(usd=9.0, rates={"source": "registered"}),
        tokens(usd=9.0, rates={"source": "explicit"}),
        tokens("nobody knows", usd=9.0),
        tokens(usd=9.0, input_tokens=0),
        tokens(usd=9.0, train_tokens=1),
        Receipt(leaf="costs/gpu", item="rare", device_seconds=100.0, usd=9.0),
        gpu_receipt("costs/gpu", GpuTime(device="card", seconds=9), 9.0, {"source": "explicit"}),
    ],
    ids=[
        "reported",
        "registered",
        "explicit",
        "unknown",
        "no tokens",
        "no train price",
        "unknown device",
        "given",
    ],
)
def test_what_cannot_or_may_not_be_priced_anew_stays_as_booked(book, receipt):
    assert Prices(book=book).usd(receipt) == 9.0


def test_given_prices_win_over_the_run_s_and_the_book_s_but_not_over_the_provider_s(book):
    given = TokenRates(input_per_million=5.0, output_per_million=0.0)
    prices = Prices(book=book, models={"p/known": given}, devices={"card": 3600.0, "": 7200.0})
    assert prices.usd(tokens(usd=9.0, rates={"source": "explicit"})) == 5.0
    assert prices.usd(tokens(usd=9.0, reported=True)) == 9.0
    card = Receipt(leaf="costs/gpu", item="card", device_seconds=10.0, usd=9.0)
    other = Receipt(leaf="costs/gpu", item="other", device_seconds=10.0, usd=9.0)
    assert (prices.usd(card), prices.usd(other)) == (10.0, 20.0)
    assert Prices(book=book).usd(card) == 0.1
    assert Prices(book=book, models={"known": given}).usd(tokens()) == 5.0


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("gpt-4.1", "openai/gpt-4.1"),
        ("gpt-4.1", "gpt-4.1"),
        ("openai/gpt-4.1", "gpt-4.1"),
        ("OpenAI/GPT-4.1", "openai/gpt-4.1"),
    ],
)
def test_a_model_s_price_is_found_under_each_of_its_names(book, name, item):
    rates = TokenRates(input_per_million=5.0, output_per_million=0.0)
    prices = Prices(book=book, models={"gpt-4.l": rates, name: rates})
    receipt = Receipt(leaf="x", item=item, provider="openai", input_tokens=1_000_000, usd=2.0)
    assert prices.usd(receipt) == 5.0
    assert prices.unmatched([receipt]) == ["gpt-4.l"]


def test_the_exact_name_of_a_model_wins_over_one_like_it(book):
    given = [TokenRates(input_per_million=usd, output_per_million=0.0) for usd in (1.0, 5.0)]
    prices = Prices(book=book, models=dict(zip(("M", "m"), given, strict=True)))
    assert prices.usd(tokens(item="m")) == 5.0
    assert prices.unmatched([tokens(item="m")]) == ["M"]


@pytest.mark.parametrize("name", ["H200", "h200", "NVIDIA H200", "nvidia h200"])
@pytest.mark.parametrize("device", ["NVIDIA H200", "H200"])
def test_a_device_s_price_is_found_with_and_without_its_maker(book, name, device):
    prices = Prices(book=book, devices={name: 2.0, "": 9.0, "H20": 1.0})
    receipt = Receipt(leaf="costs/gpu", item=device, device_seconds=3600.0, usd=3.0)
    assert prices.usd(receipt) == 2.0
    assert prices.unmatched([receipt]) == ["H20"]


def test_a_price_file_names_models_and_devices(tmp_path, book):
    file = tmp_path / "prices.json"
    file.write_text(
        '{"models": {"p/m": {"prompt_per_million": 1, "completion_per_million": 2}},'
        ' "devices": {"card": 3}}'
    )
    prices = read_prices(file, book)
    assert prices.models["p/m"].output_per_million == 2
    assert prices.models["p/m"].source == "prices.json"
    assert prices.devices == {"card": 3.0}
    file.write_text("{}")
    assert read_prices(file, book) == Prices(book=book)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "no price file"),
        ("[]", "no price file"),
        ("5", "no price file"),
        ('{"models": 5}', "no price file"),
        ('{"models": {"m": 5}}', "no price file"),
        ('{"model": {}}', "no part of .*'model'.*Did you mean 'models'"),
        ('{"models": {"m": {"prompt": 1}}}', "model 'm': prices need prompt_per_million"),
        (
            '{"devices": {"card": "3"}}',
            "device 'card': the price an hour must be a price of at least 0",
        ),
        (
            '{"devices": {"card": -1}}',
            "device 'card': the price an hour must be a price of at least 0",
        ),
    ],
)
def test_a_price_file_that_makes_no_sense_says_where(tmp_path, book, text, problem):
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_prices(file, book)


def test_the_price_of_a_device_comes_with_its_source():
    plugins = art.Plugins()
    plugins.register(Book(), "book")
    assert gpu_price(plugins, "card") == (36.0, "plugin")
    assert gpu_price(plugins, "no such card") == (None, "")
