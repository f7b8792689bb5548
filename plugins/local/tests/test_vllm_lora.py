"""LoRA on vLLM's CPU server: each token gets the adapter of its own request, or none."""

from __future__ import annotations

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from art_local.models import resolve_base_model
from art_local.testing.vllm_server import (
    PLUGIN_SAYS,
    STOCK,
    ask,
    load_adapter,
    lora_server,
    save_random_adapter,
)
from art_local.vllm.install import environment_path, installed

ENVIRONMENT = installed()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        ENVIRONMENT is None or ENVIRONMENT.variant != "cpu",
        reason=f"no vLLM for CPU in {environment_path()}: `art engines install vllm`",
    ),
]
BATCHES = ("no adapter", "one adapter", "neighbours", "interleaved", "one token")
OPERATIONS = ("linear", "shrink and expand", "logits", "embedding")
MODELS = ("base", "first", "second") * 2
PROMPT, NEW = 20, 48


@pytest.fixture(scope="module")
def operations():
    """How far the operations are from a reference that goes token by token."""
    script = Path(__file__).parent / "vllm_lora_ops.py"
    command = [ENVIRONMENT.python, "-P", script]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("batch", BATCHES)
def test_each_token_gets_its_own_adapter_or_none(operations, operation, batch):
    assert operations["plugin"][operation][batch] < 1e-6
    # bf16 keeps 8 bits: a product of two of them is off by at most about one in a hundred.
    assert operations["bf16"][operation][batch] < 0.01


def test_a_classification_head_of_an_adapter_replaces_its_own_rows_alone(operations):
    assert operations["head"] < 1e-5


def test_prompt_logprobs_are_refused_only_when_an_adapter_trains_the_output_layer(operations):
    changed_by, refusal = operations["other rows"]
    assert changed_by == 0.0
    assert "prompt_logprobs while an adapter in use trains the output layer" in refusal


@pytest.mark.parametrize("operation", OPERATIONS)
def test_vllms_own_operations_give_tokens_the_adapter_of_another(operations, operation):
    assert operations["stock"][operation]["one adapter"] < 1e-6
    assert operations["stock"][operation]["interleaved"] > 0.1


def test_the_plugin_leaves_other_platforms_and_a_changed_vllm_as_they_are(operations):
    found = operations["register"]
    assert found["said_elsewhere"] == 0
    assert found["after_a_change"] == "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU"
    assert found["chosen"] == "art_vllm_cpu.lora.GroupedPunicaWrapper"
    refused, accepted = found["said"]  # registering twice warns once
    assert "add_expand takes (self, y, x, weights, slices, bias), expected" in refused
    assert accepted.startswith(PLUGIN_SAYS)


@pytest.fixture(scope="module")
def model() -> Path:
    return resolve_base_model("HuggingFaceTB/SmolLM2-135M-Instruct", progress=False)


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    names = ("first", "second")
    return {n: save_random_adapter(model, folder / n, seed=s) for s, n in enumerate(names)}


def answer(address: str, index: int, *, prompt_logprobs: bool):
    """Return the log-probs of one request, and when it started and ended."""
    started = time.monotonic()
    prompt = [100 + 37 * (index // 3) + 11 * place for place in range(PROMPT)]
    body = {
        "model": MODELS[index],
        "prompt": prompt,
        "max_tokens": NEW,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 0,
        **({"prompt_logprobs": 0} if prompt_logprobs else {}),
    }
    choice = ask(address, "/v1/completions", body)["choices"][0]
    logprobs = choice["logprobs"]["token_logprobs"]
    assert len(logprobs) == NEW
    if prompt_logprobs:
        found = zip(prompt[1:], choice["prompt_logprobs"][1:], strict=True)
        logprobs += [alternatives[str(token)]["logprob"] for token, alternatives in found]
    return logprobs, started, time.monotonic()


def alone_and_together(environment, model, adapters, log_file, *, stock: bool):
    """Return, by model, the distance between batched and single log-probs, and the single ones."""
    asked = {"prompt_logprobs": not stock}  # they crash vLLM's own operations
    server = lora_server(
        environment, model, log_file=log_file, dtype="float32", env=STOCK if stock else {}
    )
    every = range(len(MODELS))
    with server as address:
        for name, directory in adapters.items():
            load_adapter(address, name, directory)
        alone = [answer(address, index, **asked)[0] for index in every]
        with ThreadPoolExecutor(len(MODELS)) as pool:
            together = list(pool.map(lambda index: answer(address, index, **asked), every))
    assert max(started for _, started, _ in together) < min(ended for *_, ended in together)
    furthest = dict.fromkeys(MODELS, 0.0)
    for name, one, (other, *_) in zip(MODELS, alone, together, strict=True):
        difference = max(abs(a - b) for a, b in zip(one, other, strict=True))
        furthest[name] = max(furthest[name], difference)
    return furthest, alone


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_requests_in_one_batch_get_the_log_probs_that_they_get_alone(model, adapters, tmp_path):
    log_file = tmp_path / "server.log"
    furthest, alone = alone_and_together(ENVIRONMENT, model, adapters, log_file, stock=False)
    assert PLUGIN_SAYS in log_file.read_text()
    assert max(furthest.values()) <= 1e-4, furthest
    # The three models answer the same prompt each in its own way, so that a mix-up would be seen.
    for at in range(0, len(MODELS), 3):
        base, first, second = alone[at : at + 3]
        for one, other in ((base, first), (base, second), (first, second)):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.05


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_the_plugin_the_same_batch_changes_the_base_model(model, adapters, tmp_path):
    log_file = tmp_path / "server.log"
    furthest, _ = alone_and_together(ENVIRONMENT, model, adapters, log_file, stock=True)
    assert PLUGIN_SAYS not in log_file.read_text()
    assert furthest["base"] > 0.05, furthest
