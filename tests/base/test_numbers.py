"""Numbers as users and libraries give them."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest

import art_core as art
from art_core.base.errors import ConfigError, MetricError
from art_core.base.numbers import MAX_COUNT, number_or_none, text_of
from art_core.rl.config import check_options, optional, price


class Scalar:
    """As those of NumPy and torch: no int and no float, but it becomes one."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)


class Matrix:
    def __float__(self):
        raise RuntimeError("more than one element")


def test_prices_of_any_kind_become_floats():
    rates = art.TokenRates.of(
        prompt_per_million=Decimal("0.4"),
        completion_per_million=Fraction(8, 5),
        cached_prompt_per_million=Scalar(0.1),
    )
    assert (rates.input_per_million, rates.output_per_million) == (0.4, 1.6)
    assert type(rates.cache_read_per_million) is float
    time = art.GpuTime(
        device="H200", seconds=Scalar(10), count=Scalar(2), usd_per_hour=Decimal("3.0")
    )
    assert (time.seconds, time.count, time.usd_per_hour) == (10.0, 2, 3.0)


@pytest.mark.parametrize("odd", [True, "0.4", None, -1, Decimal("NaN"), math.inf, Matrix(), [1.0]])
def test_what_is_no_price_is_refused_by_its_name(odd):
    with pytest.raises(ConfigError, match="output_per_million must be a price of at least 0, got"):
        art.TokenRates(input_per_million=1.0, output_per_million=odd)


@pytest.mark.parametrize("odd", [True, "3", -1, math.inf])
def test_what_is_no_price_of_a_device_is_refused(odd):
    with pytest.raises(ConfigError, match="usd_per_hour must be a price"):
        art.GpuTime(device="H200", seconds=1.0, usd_per_hour=odd)


@pytest.mark.parametrize("given", [7, "7", 7.0, Scalar(7), Decimal(7)])
def test_counts_of_any_kind_become_ints(given):
    usage = art.TokenUsage(input_tokens=given)
    assert type(usage.input_tokens) is int
    assert usage.total_tokens == 7


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (True, "must be a whole number, got True"),
        ("many", "must be a whole number, got 'many'"),
        (0.5, "must be a whole number"),
        (-1, "can't be negative, got -1"),
        (2**70, r"must be at most 2\*\*53"),
        (10**400, "must be a whole number"),
    ],
)
def test_what_is_no_count_is_refused_by_its_name(odd, says):
    with pytest.raises(ConfigError, match=f"output_tokens {says}"):
        art.TokenUsage(output_tokens=odd)
    assert art.TokenUsage(output_tokens=MAX_COUNT).output_tokens == MAX_COUNT


@pytest.mark.parametrize(("odd", "says"), [("soon", "must be a number"), (-1, "be negative")])
def test_what_is_no_time_is_refused(odd, says):
    with pytest.raises(ConfigError, match=f"seconds .*{says}"):
        art.GpuTime(device="H200", seconds=odd)


def test_a_bool_is_no_amount_and_no_cost(tmp_path):
    assert number_or_none(True) is None
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=art.Plugins())
    for path in ("train/judge", "costs/train/judge"):
        with pytest.raises(MetricError, match="must be a number of US dollars, got True"):
            model.metrics_builder().add_cost(path, True)
        model.metrics_builder().add_cost(path, Decimal("0.25"))


async def test_names_that_are_not_utf8_stop_no_row(tmp_path):
    async with art.Model(name="m", project="p", base_path=tmp_path, sinks=[]) as model:
        builder = model.metrics_builder("train")
        usage = art.TokenUsage(output_tokens=1, cost_usd=0.5, service_tier="\ud800")
        builder.add_usage("judge", usage, provider="acme", model_name="judge-\ud800")
        builder.add_data(scenario_ids=["s-\ud800"])
        group = art.TrajectoryGroup([art.Trajectory()], metadata={"scenario_id": "t-\ud800"})
        row = await model.log([group], split="train")
    assert row.scenario_ids == ("s-?", "t-?")
    assert [r["item"] for r in row.receipts] == ["judge-?"]
    assert text_of(3) == "3"


def test_an_option_of_a_backend_may_be_a_price_of_any_kind():
    check_options(optional(price), a=Decimal("2.5"), b=Scalar(3), c=None)
    with pytest.raises(ConfigError, match="usd must be a price of at least 0, got True"):
        check_options(price, usd=True)
