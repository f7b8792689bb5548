import pytest

import art_core as art
from art_core.costs.receipt import receipt_of
from art_core.costs.training import price_file, training_rates
from art_core.plugins import builtin

PUBLISHED = {
    "Qwen/Qwen3-4B-Instruct-2507": (0.07, 0.22, 0.22),
    "Qwen/Qwen3-8B": (0.13, 0.40, 0.40),
    "Qwen/Qwen3-30B-A3B": (0.12, 0.30, 0.36),
    "Qwen/Qwen3-32B": (0.49, 1.47, 1.47),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": (0.68, 1.70, 2.04),
    "Qwen/Qwen3.5-4B": (0.22, 0.67, 0.67),
    "Qwen/Qwen3.5-27B": (1.24, 3.73, 3.73),
    "Qwen/Qwen3.6-27B": (1.24, 3.73, 3.73),
    "Qwen/Qwen3.6-35B-A3B": (0.36, 0.89, 1.07),
    "Qwen/Qwen3.5-397B-A17B": (2.00, 5.00, 6.00),
    "meta-llama/Llama-3.2-1B": (0.03, 0.09, 0.09),
    "meta-llama/Llama-3.2-3B": (0.06, 0.18, 0.18),
    "meta-llama/Llama-3.1-8B": (0.13, 0.40, 0.40),
    "meta-llama/Llama-3.3-70B-Instruct": (1.05, 3.16, 3.16),
    "deepseek-ai/DeepSeek-V3.1": (1.13, 2.81, 3.38),
    "openai/gpt-oss-20b": (0.12, 0.30, 0.36),
    "openai/gpt-oss-120b": (0.18, 0.44, 0.52),
    "moonshotai/Kimi-K2-Thinking": (0.98, 2.44, 2.93),
    "moonshotai/Kimi-K2.6": (1.47, 3.66, 4.40),
}


@pytest.fixture
def model(tmp_path):
    plugins = art.Plugins()
    plugins.register(builtin, "core")
    return art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=plugins)


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_prefill_sampling_and_training_cost_what_was_published(name, published):
    rates = training_rates("tinker", name)
    found = (rates.input_per_million, rates.output_per_million, rates.train_per_million)
    assert found == published
    assert price_file()["as_of"] in rates.source


def test_a_model_or_provider_that_is_not_in_the_file_has_no_rates():
    assert training_rates("tinker", "qwen/qwen3-8b") == training_rates("tinker", "Qwen/Qwen3-8B")
    assert training_rates("tinker", "Qwen/Qwen3-8B:peft:262144") is None
    assert training_rates("openai", "Qwen/Qwen3-8B") is None


def test_training_costs_more_than_reading_for_every_model():
    for entry in price_file()["prices"]:
        assert 0 < entry["prefill"] < entry["sample"] <= entry["train"]


async def test_a_hosted_step_has_a_leaf_for_prefill_sampling_and_training(model):
    used = {
        "tinker_prefill": art.TokenUsage(input_tokens=1_000_000),
        "tinker_sample": art.TokenUsage(output_tokens=500_000),
        "tinker_train": art.TokenUsage(train_tokens=2_000_000),
    }
    builder = model.metrics_builder("train")
    for source, usage in used.items():
        builder.add_usage(source, usage, provider="tinker", model_name="Qwen/Qwen3-30B-A3B")
    row = await model.log(split="train", step=1)
    await model.close()
    costs = {key: row.metrics[f"costs/train/{key}"] for key in used}
    # 1M at $0.12, 0.5M at $0.30, 2M at $0.36
    assert costs == pytest.approx(
        {"tinker_prefill": 0.12, "tinker_sample": 0.15, "tinker_train": 0.72}
    )
    assert row.metrics["costs/train"] == pytest.approx(0.99)
    trained = receipt_of(row.receipts[-1])
    assert (trained.train_tokens, trained.rates["train_per_million"]) == (2_000_000, 0.36)


async def test_tokens_to_train_without_a_price_are_unpriced_never_free(model, caplog):
    builder = model.metrics_builder("train")
    builder.register_model_pricing("m", prompt_per_million=1.0, completion_per_million=1.0)
    usage = art.TokenUsage(train_tokens=1_000_000)
    assert builder.add_usage("train", usage, provider="acme", model_name="m") is None
    assert "have no train_per_million" in caplog.text
    builder.register_model_pricing(
        "m", prompt_per_million=1.0, completion_per_million=1.0, train_per_million=3.0
    )
    assert builder.add_usage("train", usage, provider="acme", model_name="m") == 3.0
    row = await model.log(split="train", step=1)
    await model.close()
    assert row.metrics["data/step_unpriced_calls"] == 1.0
    assert row.metrics["costs/train/train"] == 3.0
