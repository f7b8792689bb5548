import pytest

import art_core as art
from art_core.base.errors import PluginError

RATES = art.TokenRates(input_per_million=2.0, output_per_million=8.0, source="list")


class Book:
    """A price book whose prices the wrappers change."""

    @art.hookimpl
    def art_gpu_rate(self, device):
        return 3.0

    @art.hookimpl
    def art_token_rates(self, model):
        return RATES if model == "known" else None

    @art.hookimpl
    def art_sinks(self):
        return [art.SinkSpec(name=name, create=dict, summary="") for name in ("one", "two")]

    @art.hookimpl
    def art_rollup(self, leaves):
        return {"train/derived": 1.0}


def host(*plugins, strict=False):
    made = art.Plugins(strict=strict)
    made.register(Book(), "book")
    for number, plugin in enumerate(plugins):
        made.register(plugin, f"plugin-{number}")
    return made


def hooked(hook, function, **options):
    """Return a plugin with one hook."""
    marked = staticmethod(art.hookimpl(**options)(function))
    return type("Plugin", (), {hook: marked})()


class Discount:
    @art.hookimpl(wrapper=True)
    def art_token_rates(self, provider):
        rates = yield
        return rates and rates.scaled(0.5, f"{rates.source}, half")

    @art.hookimpl(wrapper=True)
    def art_gpu_rate(self):
        usd = yield
        return usd / 2


async def test_a_wrapper_that_halves_prices_halves_the_costs_of_a_row(tmp_path):
    plugins = host(Discount())
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=plugins)
    builder = model.metrics_builder("train")
    usage = {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000}}
    builder.add_response_cost("judge", usage, provider="acme", model_name="known")
    builder.add_gpu_time(art.GpuTime(device="card", seconds=3600))
    row = await model.log(split="train")
    await model.close()
    assert row.metrics["costs/train/judge"] == 5.0
    assert row.metrics["costs/gpu"] == 1.5
    assert {receipt["rates"]["source"] for receipt in row.receipts} == {"list, half", "plugin"}
    assert plugins.token_rates("acme", "unknown", None) is None
    assert not plugins.problems


def raises_first():
    raise OSError("down")
    yield


def raises_later():
    yield
    raise OSError("down")


def exits():
    yield
    raise SystemExit(1)


def yields_twice():
    yield
    yield


def never_yields():
    return 1.0
    yield


def answers_text():
    yield
    return "cheap"


BROKEN = [
    (raises_first, "OSError: down"),
    (raises_later, "OSError: down"),
    (exits, "SystemExit: 1"),
    (yields_twice, "a wrapper yields a second time. Yield once"),
    (never_yields, "a wrapper does not yield. Yield once"),
    (answers_text, "could not convert string to float: 'cheap'"),
]


@pytest.mark.parametrize(("fault", "reason"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_a_wrapper_that_breaks_is_set_aside_and_the_price_stands(caplog, fault, reason):
    plugins = host(hooked("art_gpu_rate", fault, wrapper=True), Discount())
    assert plugins.gpu_rate("card") == 1.5
    assert plugins.problems.keys() == {"plugin-0"}
    assert reason in str(plugins.problems["plugin-0"])
    assert plugins.gpu_rate("card") == 1.5
    assert caplog.text.count("is broken") == 1


@pytest.mark.parametrize("fault", [fault for fault, _ in BROKEN])
def test_a_wrapper_that_breaks_raises_when_strict(fault):
    plugins = host(hooked("art_gpu_rate", fault, wrapper=True), strict=True)
    with pytest.raises(PluginError, match="'plugin-0' is broken"):
        plugins.gpu_rate("card")


def test_a_wrapper_is_finished_when_what_it_wraps_raises():
    finished = []

    def tidies(device):
        try:
            return (yield)
        finally:
            finished.append(device)

    def interrupts():
        raise KeyboardInterrupt

    plugins = host(hooked("art_gpu_rate", interrupts), hooked("art_gpu_rate", tidies, wrapper=True))
    with pytest.raises(KeyboardInterrupt):
        plugins.gpu_rate("card")
    assert finished == ["card"]
    assert not plugins.problems


def test_a_wrapper_may_change_an_offer():
    def leaves_out():
        offers = yield
        return [[spec for spec in offer if spec.name != "two"] for offer in offers] + [None]

    plugins = host(hooked("art_sinks", leaves_out, wrapper=True))
    assert plugins.sinks().keys() == {"one"}


def test_the_owner_of_an_offer_is_known_behind_a_wrapper():
    def passes():
        return (yield)

    again = hooked("art_sinks", lambda: Book().art_sinks())
    with pytest.raises(PluginError, match="'one' is offered by the plugins 'plugin-1' and 'book'"):
        host(hooked("art_sinks", passes, wrapper=True), again).sinks()


def test_a_wrapper_whose_offer_is_invalid_leaves_the_offers_as_they_were():
    def adds():
        offers = yield
        offers.append([3])
        return offers

    plugins = host(hooked("art_sinks", adds, wrapper=True))
    assert plugins.sinks().keys() == {"one", "two"}
    assert "3, not a spec" in str(plugins.problems["plugin-0"])


def test_a_wrapper_of_a_rollup_changes_derived_metrics_and_no_measured_ones():
    def doubles(leaves):
        answers = yield
        return [{"train/x": 9.0}, *({key: 2 * v for key, v in a.items()} for a in answers)]

    plugins = host(hooked("art_rollup", doubles, wrapper=True))
    row = plugins.rollup({"train/x": 1.0}, {}, "train", {"train/x"})
    assert row == {"train/derived": 2.0}


def test_a_plugin_that_breaks_twice_in_one_call_is_reported_once(caplog):
    class Both:
        @art.hookimpl
        def art_gpu_rate(self):
            raise OSError("down")

        @art.hookimpl(wrapper=True, specname="art_gpu_rate")
        def around(self):
            yield
            raise OSError("down as well")

    plugins = host(Both())
    assert plugins.gpu_rate("card") == 3.0
    assert caplog.text.count("is broken") == 1


def test_the_first_price_ends_the_search():
    asked = []

    def answers(name, price):
        def rate(device):
            asked.append(name)
            return price

        return hooked("art_gpu_rate", rate)

    plugins = host(answers("late", 7.0), answers("known", 5.0), answers("empty", None))
    assert plugins.gpu_rate("card") == 5.0
    assert asked == ["empty", "known"]


@pytest.mark.parametrize(
    ("options", "price"), [({"tryfirst": True}, 5.0), ({"trylast": True}, 3.0), ({}, 5.0)]
)
def test_a_plugin_may_ask_to_be_first_or_last(options, price):
    plugins = host(hooked("art_gpu_rate", lambda: 5.0, **options))
    assert plugins.gpu_rate("card") == price
    late = hooked("art_gpu_rate", lambda: 4.0)
    plugins.register(late, "late")
    assert plugins.gpu_rate("card") == (5.0 if options == {"tryfirst": True} else 4.0)


def test_a_default_argument_is_no_argument_of_the_hook():
    plugins = host(hooked("art_gpu_rate", lambda device, factor=2.0: 1.5 * factor))
    assert plugins.gpu_rate("card") == 3.0
