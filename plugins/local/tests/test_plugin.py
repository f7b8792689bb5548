"""The specs of art-local, found by name."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import art_core as art


def test_the_plugin_is_weightless():
    code = (
        "import sys, art_local.plugin as p; p.art_backends();"
        "heavy = {'torch', 'transformers', 'peft', 'openai', 'starlette'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_backend_is_found_by_name():
    from art_local.backend import LocalBackend

    backend = art.backend("local", device="cpu")
    assert isinstance(backend, LocalBackend)
    assert isinstance(backend, art.Backend)


def test_the_backend_describes_each_of_its_options():
    from art_local.backend import LocalBackend

    options = inspect.signature(LocalBackend).parameters
    assert "lora_rank" in options
    assert [name for name in options if f"`{name}`" not in LocalBackend.__doc__] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_rnk": 4}, "no backend 'local' option 'lora_rnk'.*Did you mean 'lora_rank'"),
        ({"engine": "vlm"}, "no engine 'vlm'; known: auto, transformers, vllm"),
        ({"engine_url": "http://localhost:1", "engine": "transformers"}, "is for engine='vllm'"),
        ({"engine_device": "cuda:7"}, "no device 'cuda:7'; here: cpu"),
        ({"device": "cuda:9"}, "no device 'cuda:9'; here: cpu"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"lora_rank": 0}, "lora_rank must be a whole number of at least 1, got 0"),
        (
            {"gpu_cost_per_hour_usd": -1},
            "gpu_cost_per_hour_usd must be a price of at least 0",
        ),
        ({"gpu_cost_per_hour_usd": float("inf")}, "a price of at least 0, got inf"),
        ({"gpu_cost_per_hour_usd": "2"}, "a price of at least 0, got '2'"),
        ({"request_timeout_s": 0}, r"request_timeout_s must be a number above 0 .*, got 0"),
    ],
)
def test_bad_options_say_what_there_is(options, said):
    with pytest.raises(art.ConfigError, match=said):
        art.backend("local", **options)
