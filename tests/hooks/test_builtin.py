import art_core as art
from art_core.hooks.host import Core
from art_core.metrics.receipt import TokenUsage
from art_core.sinks.console import ConsoleSink


def plugins():
    made = art.Plugins(strict=True)
    made.register(Core(), "core")
    return made


def test_the_console_sink_is_offered_and_shows_new_rows_alone():
    spec = plugins().sink("console")
    assert isinstance(spec.create(), ConsoleSink)
    assert spec.default and not spec.backlog


def test_devices_have_default_prices():
    assert plugins().gpu_rate("NVIDIA H200") == 3.0
    assert plugins().gpu_rate("an abacus") is None


def test_models_that_no_book_knows_have_no_price():
    usage = TokenUsage(input_tokens=1)
    assert plugins().token_rates("nobody", "a model of nobody's", usage) is None


def test_the_core_offers_no_backend():
    assert plugins().backends() == {}
