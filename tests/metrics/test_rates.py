import pytest

from art_core.base.errors import ConfigError
from art_core.metrics.receipt import GpuTime, TokenRates, TokenUsage, price, price_gpu
from art_core.prices.tables import gpu_rate, read_table


def test_gpt_4_1_with_a_cached_prompt_costs_what_hand_arithmetic_says():
    # 40k fresh at $2.00, 60k cached at $0.50 and 2k out at $8.00 per million: 0.080 + 0.030 + 0.016
    rates = TokenRates.of(
        prompt_per_million=2.0, completion_per_million=8.0, cached_prompt_per_million=0.5
    )
    usage = TokenUsage(input_tokens=100_000, cache_read_tokens=60_000, output_tokens=2_000)
    assert price(usage, rates) == pytest.approx(0.126, abs=1e-12)


def test_claude_sonnet_4_with_a_cache_write_costs_what_hand_arithmetic_says():
    # 5k at $3, 20k read at $0.30, 8k written at $3.75, 1.5k out at $15:
    # 0.015 + 0.006 + 0.030 + 0.0225
    rates = TokenRates.of(
        prompt_per_million=3.0,
        completion_per_million=15.0,
        cache_read_per_million=0.3,
        cache_creation_per_million=3.75,
    )
    usage = TokenUsage(
        input_tokens=33_000, cache_read_tokens=20_000, cache_write_tokens=8_000, output_tokens=1_500
    )
    assert price(usage, rates) == pytest.approx(0.0735, abs=1e-12)


def test_cached_tokens_cost_as_much_as_fresh_ones_unless_a_rate_is_given():
    rates = TokenRates(input_per_million=1.0, output_per_million=0.0)
    usage = TokenUsage(
        input_tokens=3_000_000, cache_read_tokens=1_000_000, cache_write_tokens=1_000_000
    )
    assert price(usage, rates) == 3.0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_price_must_be_a_finite_number_of_at_least_zero(bad):
    with pytest.raises(ConfigError, match="price of at least 0"):
        TokenRates(input_per_million=bad, output_per_million=1.0)


def test_two_devices_for_half_an_hour_cost_one_device_hour():
    assert price_gpu(GpuTime(device="H200", seconds=1800, count=2), 3.0) == 3.0


@pytest.mark.parametrize(
    ("device", "usd"),
    [
        ("NVIDIA H200", 3.00),
        ("NVIDIA H100 80GB HBM3", 3.99),
        ("NVIDIA H100 PCIe", 2.89),
        ("NVIDIA A100-SXM4-80GB", 1.79),
        ("NVIDIA A10G", 1.006),
        ("Tesla T4", 0.59),
        ("rtx 4090", 0.34),
    ],
)
def test_a_device_is_priced_by_the_name_that_its_driver_gives(device, usd):
    assert gpu_rate(device) == usd


@pytest.mark.parametrize(
    "device",
    [
        "a toaster",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA L40",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_a_device_of_a_similar_name_has_no_price(device):
    assert gpu_rate(device) is None


def test_each_device_s_price_says_where_it_is_from_and_of_when():
    names = [name.lower() for entry in read_table("gpu")["prices"] for name in entry["names"]]
    assert len(names) == len(set(names))
    for entry in read_table("gpu")["prices"]:
        assert entry["usd_per_hour"] > 0
        assert entry["source"]
        assert entry["as_of"].startswith("2026-")


def test_more_hourly_writes_than_writes_do_not_make_a_call_cheaper():
    odd = TokenUsage(input_tokens=1_000_000, cache_write_1h_tokens=1_000_000)
    rates = TokenRates.of(prompt_per_million=1.0, completion_per_million=1.0)
    assert price(odd, rates) == 2.0


def test_scaled_rates_scale_each_rate_that_is_given():
    rates = TokenRates(
        input_per_million=2.0, output_per_million=8.0, web_search_per_thousand=10.0, as_of="2026-05"
    )
    assert rates.scaled(0.5, "half") == TokenRates(
        input_per_million=1.0,
        output_per_million=4.0,
        web_search_per_thousand=5.0,
        source="half",
        as_of="2026-05",
    )
