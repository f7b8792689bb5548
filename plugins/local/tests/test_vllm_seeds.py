"""Seeded requests on vLLM's CPU server whose prompts are computed in parts."""

from __future__ import annotations

import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from art_local.models import resolve_base_model
from art_local.testing.vllm_server import STOCK, ask, lora_server
from art_local.vllm.install import environment_path, installed

ENVIRONMENT = installed()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        ENVIRONMENT is None or ENVIRONMENT.variant != "cpu",
        reason=f"no vLLM for CPU in {environment_path()}: `art engines install vllm`",
    ),
]
LONG, SHORT, NEW, PART = 150, 20, 8, 64
LENGTHS = (LONG, SHORT) * 3
SAID = "seeds on CPU: a draw that is dropped is taken back"


@pytest.fixture(scope="module")
def model() -> Path:
    return resolve_base_model("HuggingFaceTB/SmolLM2-135M-Instruct", progress=False)


def in_parts(model, log_file, env):
    """A server that computes no more than PART tokens at once, so that a long prompt takes three
    parts.
    """
    options = ("--max-num-batched-tokens", str(PART), "--no-enable-prefix-caching")
    return lora_server(
        ENVIRONMENT, model, log_file=log_file, dtype="float32", env=env, options=options
    )


def answer(address, length, seed):
    prompt = [100 + 7 * place for place in range(length)]
    body = {"model": "base", "prompt": prompt, "max_tokens": NEW, "seed": seed, "ignore_eos": True}
    return ask(address, "/v1/completions", body)["choices"][0]["text"]


def answers(address):
    return [answer(address, length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def alone_and_together(model, tmp_path_factory):
    """What a server that computes in parts answers one after the other, and all at once: other
    parts.
    """
    log_file = tmp_path_factory.mktemp("parts") / "server.log"
    with in_parts(model, log_file, {}) as address:
        alone = answers(address)
        with ThreadPoolExecutor(len(LENGTHS)) as pool:
            together = list(pool.map(lambda s: answer(address, LENGTHS[s], s), range(len(LENGTHS))))
    assert SAID in log_file.read_text()
    return alone, together


def test_a_seed_draws_the_same_whatever_the_parts_of_its_prompt(alone_and_together):
    alone, together = alone_and_together
    assert together == alone
    assert len(set(alone)) == len(alone)


@pytest.mark.slow
def test_a_seed_draws_the_same_when_its_prompt_is_computed_whole(
    model, alone_and_together, tmp_path
):
    log_file = tmp_path / "server.log"
    with lora_server(ENVIRONMENT, model, log_file=log_file, dtype="float32", env={}) as address:
        assert answers(address) == alone_and_together[0]


@pytest.mark.slow
def test_without_the_plugin_such_a_request_ends_the_server(model, tmp_path):
    log_file = tmp_path / "server.log"
    with in_parts(model, log_file, STOCK) as address:
        assert answer(address, SHORT, 1) == answer(address, SHORT, 1)
        with pytest.raises((urllib.error.URLError, OSError)):
            answer(address, LONG, 1)
    assert "CPU Generator does not use offset" in log_file.read_text()
