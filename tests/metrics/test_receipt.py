from art_core.metrics.receipt import (
    GpuTime,
    TokenRates,
    TokenUsage,
    gpu_receipt,
    receipt_of,
    token_receipt,
)

USAGE = TokenUsage(input_tokens=10, output_tokens=2, service_tier="flex")
RATES = TokenRates(input_per_million=1.0, output_per_million=2.0, source="explicit")


def test_receipts_of_one_kind_add_up_and_others_stay_apart():
    one = token_receipt("costs/train/judge", "acme", "m", USAGE, 0.5, RATES)
    two = one.plus(one)
    assert (two.calls, two.input_tokens, two.output_tokens, two.usd) == (2, 20, 4, 1.0)
    assert two.kind == one.kind
    unpriced = token_receipt("costs/train/judge", "acme", "m", USAGE, None, None)
    assert unpriced.kind != one.kind
    assert unpriced.plus(unpriced).usd is None


def test_a_receipt_is_read_back_out_of_its_row():
    receipt = token_receipt("costs/train/judge", "acme", "m", USAGE, 0.5, RATES)
    assert receipt_of(receipt.to_dict()) == receipt
    assert receipt.usage == USAGE
    assert receipt.rates == {
        "input_per_million": 1.0,
        "output_per_million": 2.0,
        "source": "explicit",
    }


def test_a_cost_that_the_provider_named_has_no_rates():
    usage = TokenUsage(input_tokens=10, cost_usd=0.25)
    receipt = token_receipt("costs/train/judge", "acme", "m", usage, 0.25, RATES)
    assert (receipt.reported, receipt.rates) == (True, {})


def test_device_time_without_a_price_keeps_its_seconds():
    receipt = gpu_receipt("costs/gpu", GpuTime(device="card", seconds=5.0, count=2), None, {})
    assert receipt.to_dict() == {"leaf": "costs/gpu", "item": "card", "device_seconds": 10.0}
