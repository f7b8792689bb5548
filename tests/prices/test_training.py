import json
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.hooks.host import Core
from art_core.metrics.receipt import price, receipt_of
from art_core.prices.tables import (
    fetch_json,
    is_old,
    listed_models,
    models_of,
    save_list,
    training_rates,
    update_path,
)

# prefill, cached prefill, sampling, training; in October 2026
PUBLISHED = {
    "Qwen/Qwen3-8B": (0.195, 0.039, 0.60, 0.44),
    "Qwen/Qwen3.5-4B": (0.33, 0.066, 1.005, 0.737),
    "Qwen/Qwen3.5-9B": (0.66, 0.132, 1.995, 1.463),
    "Qwen/Qwen3.6-35B-A3B": (0.54, 0.108, 1.335, 1.177),
    "Qwen/Qwen3.8-27B": (1.86, 0.372, 5.595, 4.103),
    "openai/gpt-oss-20b": (0.18, 0.036, 0.45, 0.396),
    "openai/gpt-oss-120b": (0.33, 0.066, 0.84, 0.737),
    "thinkingmachines/Inkling": (1.87, 0.374, 4.68, 5.61),
}
# No longer listed: the prices of before July 2026
RETIRED = {
    "Qwen/Qwen3-4B-Instruct-2507": (0.07, None, 0.22, 0.22),
    "Qwen/Qwen3-30B-A3B": (0.12, None, 0.30, 0.36),
    "Qwen/Qwen3-32B": (0.49, None, 1.47, 1.47),
    "meta-llama/Llama-3.3-70B-Instruct": (1.05, None, 3.16, 3.16),
    "moonshotai/Kimi-K2-Thinking": (0.98, None, 2.44, 2.93),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No list that a user of this machine has read."""
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    listed_models.cache_clear()
    yield tmp_path / "cache" / "training_prices.json"
    listed_models.cache_clear()


def fetch_list(source, provider, today):
    return models_of(fetch_json(source), source, provider, today)


def priced(name):
    rates = training_rates("tinker", name)
    read, train = rates.cache_read_per_million, rates.train_per_million
    return rates.input_per_million, read, rates.output_per_million, train


@pytest.fixture
def model(tmp_path):
    plugins = art.Plugins()
    plugins.register(Core(), "core")
    return art.Model(name="m", project="p", base_path=tmp_path, sinks=[], plugins=plugins)


@pytest.mark.parametrize(("name", "published"), (PUBLISHED | RETIRED).items())
def test_prefill_sampling_and_training_cost_what_was_published(name, published):
    assert priced(name) == published
    as_of = "2026-10-07" if name in PUBLISHED else "2026-06-12"
    assert training_rates("tinker", name).as_of == as_of
    assert training_rates("tinker", name).source.endswith(f", {as_of}")


def test_cached_prefill_has_a_name_of_its_own_too():
    alone = training_rates("tinker", "Qwen/Qwen3-8B:cached-prefill")
    assert alone.input_per_million == 0.039
    # A fifth of 1 million at $0.195, the other at full price.
    used = art.TokenUsage(input_tokens=2_000_000, cache_read_tokens=1_000_000)
    assert price(used, training_rates("tinker", "Qwen/Qwen3-8B")) == pytest.approx(0.234)
    assert training_rates("tinker", "Qwen/Qwen3-32B:cached-prefill") is None


def test_a_model_or_provider_that_is_not_in_the_file_has_no_rates():
    assert training_rates("Tinker", "qwen/qwen3-8b") == training_rates("tinker", "Qwen/Qwen3-8B")
    assert training_rates("tinker", "Qwen/Qwen3-8B:peft:262144") is None
    assert training_rates("openai", "Qwen/Qwen3-8B") is None


def test_answers_cost_more_than_prompts_and_cached_ones_less():
    for model in listed_models().values():
        assert 0 < (model.cached or 1e-9) < model.prefill < model.sample
        assert model.train > 0
        assert model.source


TODAY = date(2026, 12, 1)


def test_a_newer_list_counts_from_then_on_and_older_ones_beside_it(own_cache, tmp_path):
    tinkers = [
        {"name": "Qwen3-8B", "tinker_id": "Qwen/Qwen3-8B", "context": "32K", "prefill": "$0.25",
         "sample": "$1,000.50", "train": "$0.50"},
        {"tinker_id": "new/model", "prefill": 1.0, "sample": 2, "train": None,
         "cached_prefill": "$0.10"},
    ]  # fmt: skip
    source = tmp_path / "models.json"
    source.write_text(json.dumps(tinkers))
    assert save_list(fetch_list(str(source), "tinker", TODAY)) == own_cache
    assert priced("Qwen/Qwen3-8B") == (0.25, 0.05, 1000.5, 0.5)
    assert priced("new/model") == (1.0, 0.1, 2.0, None)
    assert training_rates("tinker", "new/model").as_of == "2026-12-01"
    assert priced("Qwen/Qwen3.5-4B") == PUBLISHED["Qwen/Qwen3.5-4B"]

    own = {"provider": "acme", "as_of": "2026-11", "source": "our contract"}
    own |= {"prices": [{"model": "new/model", "prefill": 3, "sample": 4, "train": 5}]}
    source.write_text(json.dumps(own))
    save_list(fetch_list(str(source), "somebody", TODAY))
    rates = training_rates("acme", "new/model")
    assert (rates.input_per_million, rates.source) == (3.0, "our contract, 2026-11")
    assert rates.cache_read_per_million is None
    assert priced("new/model") == (1.0, 0.1, 2.0, None)


def test_an_older_list_does_not_win_over_the_file(tmp_path):
    old = [{"model": "Qwen/Qwen3-8B", "prefill": 9, "sample": 9, "as_of": "2026-01-05"}]
    source = tmp_path / "old.json"
    source.write_text(json.dumps(old))
    save_list(fetch_list(str(source), "tinker", TODAY))
    assert priced("Qwen/Qwen3-8B") == PUBLISHED["Qwen/Qwen3-8B"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot read a price list"),
        ("[]", "no price list"),
        ('{"models": 1}', "no price list"),
        ("[1]", "has no model"),
        ('[{"model": "m", "sample": 1}]', "no prefill or no sample price of 'm'"),
        ('[{"model": "m", "prefill": "soon", "sample": 1}]', "no prefill"),
        ('[{"model": "m", "prefill": -1, "sample": 1}]', "prefill of m must be a price"),
        ('[{"model": "m", "prefill": 1, "sample": 1, "as_of": "May"}]', "as_of is a day such as"),
    ],
)
def test_what_is_no_price_list_is_refused_and_changes_nothing(tmp_path, own_cache, text, says):
    source = tmp_path / "odd.json"
    source.write_text(text)
    with pytest.raises(ConfigError, match=says):
        fetch_list(str(source), "tinker", TODAY)
    assert not own_cache.exists()


def test_an_address_that_does_not_answer_is_an_error():
    with pytest.raises(ConfigError, match="cannot read a price list from http://127.0.0.1:9/"):
        fetch_list("http://127.0.0.1:9/models.json", "tinker", TODAY)


def test_a_list_is_read_from_an_address():
    body = json.dumps([{"model": "m", "prefill": 1, "sample": 2}]).encode()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request).start()
        address = f"http://127.0.0.1:{server.server_port}/prices.json"
        (model,) = fetch_list(address, "acme", TODAY)
    assert (model.provider, model.prefill, model.source) == ("acme", 1.0, address)
    assert (model.cached, model.train) == (None, None)


def test_a_kept_list_that_is_broken_is_said_and_the_file_counts(own_cache, caplog):
    own_cache.parent.mkdir()
    own_cache.write_text("{")
    assert priced("Qwen/Qwen3-8B") == PUBLISHED["Qwen/Qwen3-8B"]
    assert "Run `art prices update` again" in caplog.text


def test_a_list_is_old_after_sixty_days():
    assert not is_old("2026-10-07", date(2026, 12, 6))
    assert is_old("2026-10-07", date(2026, 12, 7))
    assert is_old("2026-03", date(2026, 5, 1))
    assert not is_old(None, TODAY)
    assert not is_old("yesterday", TODAY)


def test_lists_are_kept_in_the_user_s_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert update_path() == tmp_path / "art" / "training_prices.json"


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
