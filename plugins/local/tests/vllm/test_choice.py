"""The choice of an engine, the connection to a server, and the refusals."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
import torch
from vllm_helpers import FACTS, QUICK, adapter, sampled, state

import art_core as art
from art_core.base.errors import EngineError
from art_core.base.files import replace_json
from art_local.engines import charged_devices, choose, memory_share, model_facts
from art_local.models.load import PlainLoader
from art_local.models.placement import Placement, placement
from art_local.options import LocalOptions
from art_local.session.model_session import ModelSession
from art_local.vllm.client import VllmClient
from art_local.vllm.engine import VllmEngine
from art_local.vllm.install import MARKER
from art_local.vllm.pool import VllmPool
from art_local.vllm.server import RemoteServer
from art_local.vllm.supervisor import Timeouts


@pytest.fixture
def have(tmp_path, monkeypatch):
    """Pretends that vLLM is installed, for a kind of device."""
    monkeypatch.setenv("ART_ENGINES", str(tmp_path / "engines"))

    def installed(variant):
        python = tmp_path / "engines" / "vllm" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        replace_json(python.parent.parent / MARKER, {"version": "9.9", "variant": variant})

    return installed


def chosen(engine="auto", device="cpu", **options):
    if device == "cpu":
        where = placement("cpu", "float32")
    else:
        where = Placement(device=torch.device(device), dtype=torch.float32, device_name="GPU")
    return choose(LocalOptions(engine=engine, **options), where)


@pytest.fixture
def two_gpus(monkeypatch):
    """Placements believe in two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


def test_auto_is_vllm_on_cuda_where_it_is_installed_and_lora_is_trained(have, two_gpus):
    assert chosen(device="cuda:0").name == "transformers"
    have("cuda")
    assert chosen(device="cuda:0").name == "vllm"
    assert chosen(device="cuda:0", full_finetune=True).name == "transformers"


def test_auto_is_the_embedded_engine_on_a_cpu(have):
    have("cpu")
    assert chosen().name == "transformers"
    assert chosen("vllm").name == "vllm"


def test_auto_leaves_a_vllm_alone_that_is_made_for_another_kind_of_device(have, two_gpus):
    have("cpu")
    assert chosen(device="cuda:0").name == "transformers"


def test_a_device_of_its_own_lets_both_run_at_once(have, two_gpus):
    have("cuda")
    shared, own = (chosen("vllm", "cuda:0", engine_device=d) for d in (None, "cuda:1"))
    assert (shared.own_device, own.own_device) == (False, True)
    assert str(own) == "vllm on cuda:1"


@pytest.mark.parametrize(
    ("engine_device", "order"), [(None, ["model", "server"]), ("cuda:1", ["server", "model"])]
)
def test_a_server_on_the_trainers_device_is_started_when_the_model_is_there(
    have, two_gpus, monkeypatch, tiny_directory, tmp_path, engine_device, order
):
    """It would count the model as its own memory, and find too little left for its cache."""
    have("cuda")
    backend = art.backend("local", device="cuda:0", engine="vllm", engine_device=engine_device)
    happened = []
    monkeypatch.setattr(VllmPool, "share", lambda *_: happened.append("server"))
    monkeypatch.setattr(PlainLoader, "base", lambda *_: happened.append("model"))
    monkeypatch.setattr(ModelSession, "open", lambda *_: None)
    backend._open_session(
        SimpleNamespace(name="m", base_model=str(tiny_directory), run_dir=tmp_path)
    )
    assert happened == order


def test_a_server_on_the_trainers_device_takes_nine_tenths_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 << 30, 80 << 30))
    assert memory_share(torch.device("cuda:0")) == pytest.approx(0.9 / 4)


def test_a_device_of_the_servers_own_is_paid_for_too(have, two_gpus):
    have("cuda")
    trainer = Placement(device=torch.device("cuda:0"), dtype=torch.float32, device_name="GPU")
    shared = chosen("vllm", "cuda:0")
    own = chosen("vllm", "cuda:0", engine_device="cuda:1")
    elsewhere = chosen("vllm", "cuda:0", engine_url="http://x")
    held = [
        [str(p.device) for p in charged_devices([trainer], c)] for c in (shared, own, elsewhere)
    ]
    assert held == [["cuda:0"], ["cuda:0", "cuda:1"], ["cuda:0"]]


def test_a_key_is_for_a_server_that_runs_already(have):
    have("cpu")
    with pytest.raises(art.ConfigError, match="engine_key is the key of the server at engine_url"):
        chosen("vllm", engine_key="k")
    assert chosen("vllm", engine_url="http://x", engine_key="k").key == "k"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "vlm"}, "no engine 'vlm'; known: auto, transformers, vllm"),
        ({"engine": "vllm"}, "'vllm' is not installed"),
        ({"engine": "vllm", "full_finetune": True}, "serves LoRA adapters; full_finetune changes"),
        ({"engine_device": "cuda:3"}, "no device 'cuda:3'; here: cpu"),
        ({"engine": "transformers", "engine_args": {"x": 1}}, "engine_args is for engine='vllm'"),
        ({"engine_key": "k"}, "engine_key is for engine='vllm'"),
        ({"engine_timeouts": {"start_s": 1}}, "engine_timeouts is for engine='vllm'"),
        ({"engine_url": "http://x", "engine_args": {"x": 1}}, "engine_args is for a server of our"),
        ({"engine_url": "http://x", "engine_device": "cpu"}, "engine_device is for a server of"),
        (
            {"engine": "vllm", "engine_url": "http://x", "engine_timeouts": {"start": 1}},
            "no engine_timeouts entry 'start'.*Did you mean 'start_s'",
        ),
        (
            {"engine": "vllm", "engine_url": "http://x", "engine_timeouts": {"start_s": "1"}},
            "must be a number, got '1'",
        ),
    ],
)
def test_what_does_not_go_together_says_why(options, said, tmp_path, monkeypatch):
    monkeypatch.setenv("ART_ENGINES", str(tmp_path))
    with pytest.raises(art.ConfigError, match=said):
        chosen(**options)


def test_the_facts_of_a_model_come_from_its_directory(tiny_directory):
    facts = model_facts(tiny_directory, None)
    assert (facts.context_length, facts.vocabulary, facts.ends) == (512, 260, (258,))
    assert model_facts(tiny_directory, 100).context_length == 100


def remote(engine, tmp_path, key=None, **timeouts):
    """An engine on the server of another engine."""
    theirs = engine.server.client
    key = key or theirs._http.headers["Authorization"].removeprefix("Bearer ")
    url = f"{theirs.url}/v1"
    return VllmEngine(
        lambda: RemoteServer(VllmClient(url, key)),
        FACTS,
        tmp_path / "mine",
        timeouts=Timeouts(**{**QUICK, **timeouts}),
    )


async def test_a_server_that_runs_elsewhere_is_used_and_stays(start, tmp_path):
    theirs = start()
    mine = remote(theirs, tmp_path)
    mine.wait_ready()
    await asyncio.to_thread(mine.publish, "m@1", adapter())
    assert [t.logprob for t in await sampled(mine, adapter_name="m@1")] == [-0.25] * 4
    await mine.close()
    assert len(await sampled(theirs)) == 4


async def test_a_server_elsewhere_that_forgot_an_adapter_is_told_again(start, tmp_path):
    theirs = start()
    mine = remote(theirs, tmp_path)
    mine.wait_ready()
    await asyncio.to_thread(mine.publish, "m@1", adapter())
    theirs._loop.run(theirs.server.client.unload_adapter("m@1"), 5, "forgetting")
    assert state(theirs)["adapters"] == {}
    assert len(await sampled(mine, adapter_name="m@1")) == 4
    await mine.close()


def test_a_wrong_key_and_a_silent_address_say_so(start, tmp_path):
    theirs = start()
    with pytest.raises(EngineError, match="401 .*Check engine_key"):
        remote(theirs, tmp_path, key="wrong").wait_ready()
    engine = VllmEngine(
        lambda: RemoteServer(VllmClient("http://127.0.0.1:9", None)),
        FACTS,
        tmp_path / "mine",
        timeouts=Timeouts(start_s=0.5),
    )
    with pytest.raises(EngineError, match="http://127.0.0.1:9 does not answer within 0.5 s"):
        engine.wait_ready()


def test_what_the_server_is_told_is_documented(start):
    """The fake refuses arguments that vLLM does not have, so it started with the right ones."""
    words = state(start())["arguments"]
    assert json.dumps(words).count("--enable-lora") == 1


def test_deterministic_is_for_the_embedded_engine_on_a_cpu(have, two_gpus):
    have("cpu")
    assert chosen(deterministic=True).name == "transformers"
    with pytest.raises(art.ConfigError, match="deterministic=True is for the CPU"):
        chosen(device="cuda:0", deterministic=True)
    with pytest.raises(art.ConfigError, match=r"embedded engine.*engine='transformers'"):
        chosen("vllm", deterministic=True)


def test_rounded_weights_are_for_the_embedded_engine_on_a_cpu(have, two_gpus):
    have("cpu")
    assert chosen(engine_weights="int8").name == "transformers"
    with pytest.raises(art.ConfigError, match="'int8' is for the CPU, and this model is on cuda:0"):
        chosen(device="cuda:0", engine_weights="int8")
