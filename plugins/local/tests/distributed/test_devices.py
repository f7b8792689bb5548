"""The options of several devices: what fits together, what vLLM gets, what is charged."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import pytest
import torch

import art_core as art
from art_core.base.errors import ConfigError
from art_local.backend import LocalBackend
from art_local.engines import EngineChoice, charged_devices
from art_local.models.placement import Placement
from art_local.options import LocalOptions
from art_local.vllm.command import ServerSettings, arguments, environment

PAIR = ["cpu", "cpu"]


def test_indices_are_cuda_devices():
    options = LocalOptions(trainer_devices=[0, 1], engine_devices=(2, "cuda:3"))
    assert options.trainer_devices == ("cuda:0", "cuda:1")
    assert options.engine_devices == ("cuda:2", "cuda:3")


@pytest.mark.parametrize(
    ("options", "stated"),
    [
        ({"trainer_devices": []}, "devices must be a list of indices or names"),
        ({"trainer_devices": "cpu"}, "devices must be a list of indices or names"),
        ({"trainer_devices": [0.5]}, "devices must be a list of indices or names"),
        ({"trainer_devices": PAIR, "device": "cpu"}, "device and trainer_devices are both given"),
        (
            {"engine_devices": ["cpu"], "engine_device": "cpu"},
            "engine_device and engine_devices are both given",
        ),
        ({"trainer_devices": [0, 1]}, "no device 'cuda:0'; here: cpu"),
        ({"trainer_devices": PAIR, "full_finetune": True}, "full_finetune=True does not go with"),
        ({"trainer_devices": PAIR, "deterministic": True}, "deterministic=True does not go with"),
        ({"trainer_devices": PAIR, "engine_devices": PAIR}, "is for engine='vllm'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, stated):
    with pytest.raises(ConfigError, match=stated):
        art.backend("local", **options)


def test_a_backend_with_models_of_its_own_trains_on_one_device():
    @attrs.frozen
    class Loader:
        merges = True

    with pytest.raises(ConfigError, match="this backend's loader of base models does not go with"):
        LocalBackend(loader=Loader(), trainer_devices=PAIR)


def test_single_operations_run_on_one_device():
    with pytest.raises(ConfigError, match="single operations run on one device"):
        LocalBackend(trainer_devices=PAIR).primitives()


def server(**options):
    given = {
        "model": Path("/model"), "device": "cuda:2", "dtype": "bfloat16", "context_length": 64,
        "max_rank": 8, "adapters": 2, "max_sequences": 8, "devices": ("cuda:2", "cuda:3"),
    }  # fmt: skip
    return ServerSettings(**{**given, **options})


def test_vllm_splits_layers_over_its_devices():
    pairs = dict(itertools.pairwise(arguments(server(), 8)))
    assert pairs["--tensor-parallel-size"] == "2"
    assert environment(server(), "key", {})["CUDA_VISIBLE_DEVICES"] == "2,3"
    outer = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert environment(server(), "key", outer)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "--tensor-parallel-size" not in arguments(server(devices=()), 8)


def test_vllm_serves_copies_where_that_is_asked_for():
    extra = {"data-parallel-size": 2}
    pairs = dict(itertools.pairwise(arguments(server(extra=extra), 8)))
    assert (pairs["--data-parallel-size"], pairs["--tensor-parallel-size"]) == ("2", "1")
    four = server(extra=extra, devices=tuple(f"cuda:{i}" for i in range(4)))
    assert dict(itertools.pairwise(arguments(four, 8)))["--tensor-parallel-size"] == "2"
    with pytest.raises(ConfigError, match="ask for 1 x 3 devices.*engine_devices are 2"):
        arguments(server(extra={"data_parallel_size": 3}), 8)


def place(name):
    return Placement(device=torch.device(name), dtype=torch.float32, device_name="H100")


def test_every_device_is_charged_once(monkeypatch):
    monkeypatch.setattr("art_local.engines.placement", place)
    devices = (torch.device("cuda:2"), torch.device("cuda:3"))
    choice = EngineChoice(name="vllm", device=devices[0], own_device=True, devices=devices)
    trainers = [place("cuda:0"), place("cuda:1")]
    charged = charged_devices(trainers, choice)
    assert [str(each.device) for each in charged] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    elsewhere = attrs.evolve(choice, url="http://x")
    assert len(charged_devices(trainers, elsewhere)) == 2
    # ranks on a CPU are one machine
    cpu = EngineChoice(name="transformers", device=torch.device("cpu"))
    assert len(charged_devices([place("cpu"), place("cpu")], cpu)) == 1


def test_the_time_of_all_devices_is_charged_at_the_price_of_one(monkeypatch):
    backend = LocalBackend(trainer_devices=PAIR, gpu_cost_per_hour_usd=2.0)
    held = [place(f"cuda:{index}") for index in range(4)]
    monkeypatch.setattr("art_local.backend.charged_devices", lambda *_: held)
    (time,) = backend._device_time(3600.0)
    assert (time.device, time.count, time.seconds, time.usd_per_hour) == ("H100", 4, 3600.0, 2.0)
