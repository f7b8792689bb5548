"""The options, the routing of prompts and the prices of nodes, without a cluster."""

from __future__ import annotations

import importlib.metadata
import inspect
import os

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.testing.plugin import PluginContract
from art_local.options import SharedOptions
from art_ray.nodes import ActorPlace, device_times, kinds_of, reach_directly
from art_ray.options import RayOptions, RolloutResources
from art_ray.prefixes import BLOCK, PrefixRouter


class TestPlugin(PluginContract):
    module = "art_ray.plugin"
    heavy = (*PluginContract.heavy, "art_local.backend", "peft", "ray", "sky", "yaml")


def test_options_are_those_of_the_local_backend_and_rays_own():
    shared, ours = attrs.fields_dict(SharedOptions), attrs.fields_dict(RayOptions)
    own = {"trainer", "engines", "rollouts", "address", "runtime_env", "strategy"}
    assert set(ours) - set(shared) == own | {"node_usd_per_hour", "start_timeout_s"}
    assert set(RayOptions().local()) == set(shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer": {"num_gpu": 1}}, r"no trainer entry 'num_gpu'.*Did you mean 'num_gpus'"),
        ({"engines": {"replicas": 0}}, "engines: replicas must be a whole number of at least 1"),
        ({"engines": {"num_cpus": -1}}, "engines: num_cpus must be a number of at least 0"),
        ({"rollouts": {"max_retries": -2}}, "max_retries must be a whole number of at least -1"),
        ({"trainer": {"resources": {"big": 0}}}, "must be a positive number"),
        ({"strategy": "pack"}, "strategy"),
        ({"engine": "sglang"}, "no engine 'sglang'"),
        ({"engine_url": "http://box"}, "engine_url is for the backend 'local'"),
        ({"node_usd_per_hour": {"h100": -1.0}}, "node_usd_per_hour must be at least 0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_before_anything_starts(options, message):
    with pytest.raises(art.ConfigError, match=message):
        art.backend("ray", **options)


def test_resources_become_bundles_of_a_placement_group():
    trainer, engines, rollouts = RayOptions(
        trainer={"num_cpus": 4, "num_gpus": 8},
        engines={"replicas": 2, "num_cpus": 0, "resources": {"fast": 1}},
    ).parts()
    assert trainer.bundle() == {"CPU": 4.0, "GPU": 8.0}
    assert (engines.bundle(), engines.replicas) == ({"fast": 1.0}, 2)
    assert rollouts is None
    assert RolloutResources.of("x", {"num_cpus": 0.5}).requested()["num_cpus"] == 0.5


def test_workers_of_the_trainer_are_devices_of_its_node():
    assert RayOptions().parts()[0].devices() == {}
    two = RayOptions(trainer={"num_workers": 2}).parts()[0]
    assert two.devices() == {"device": None, "trainer_devices": ["cpu", "cpu"]}
    gpus = RayOptions(trainer={"num_workers": 2, "num_gpus": 2}).parts()[0]
    assert gpus.devices()["trainer_devices"] == ["cuda:0", "cuda:1"]
    with pytest.raises(art.ConfigError, match="2 workers need 2 GPUs"):
        RayOptions(trainer={"num_workers": 2, "num_gpus": 1})


def test_a_conversation_stays_with_its_replica_and_new_ones_go_where_there_is_least_to_do():
    router = PrefixRouter(2)
    first, second = [1] * 3 * BLOCK, [2] * 3 * BLOCK
    with router.routed(first) as one, router.routed(second) as other:
        assert {one, other} == {0, 1}
    assert router.choose([*first, 7, 8]) == one
    assert router.choose([*second, *first]) == other


def test_a_replica_with_too_much_to_do_passes_prompts_on():
    router = PrefixRouter(2)
    prompt = [1] * BLOCK
    chosen = router.choose(prompt)
    router.running[chosen] = 8  # of 8: a share is 4, and 5 are the limit
    assert router.choose(prompt) == 1 - chosen


def test_a_lost_replica_gets_nothing_while_there_are_others():
    router = PrefixRouter(3)
    prompt = [1] * BLOCK
    lost = router.choose(prompt)
    assert router.choose(prompt, without={lost}) != lost
    assert router.choose(prompt, without={0, 1, 2}) in {0, 1, 2}


@given(st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=80), st.booleans()), max_size=60))
def test_no_replica_has_more_than_its_share_and_a_quarter(requests):
    router, running = PrefixRouter(3), []
    for prompt, ends in requests:
        if ends and running:
            running.pop(0).__exit__(None, None, None)
        request = router.routed(prompt)
        request.__enter__()
        running.append(request)
        total = sum(router.running)
        assert total == len(running)
        assert min(router.running) <= total / 3
    for request in running:
        request.__exit__(None, None, None)
    assert router.running == [0, 0, 0]


def place(node, gpus=0.0, device="cpu", kinds=()):
    return ActorPlace(node_id=node, address=node, pid=1, device=device, gpus=gpus, kinds=kinds)


def charged(places, **prices):
    given = {"node_usd_per_hour": None, "gpu_usd_per_hour": None, **prices}
    times = device_times(places, 3600.0, **given)
    return [(time.device, time.count, time.usd_per_hour) for time in times]


def test_each_node_is_charged_once_at_its_own_price():
    places = [
        place("a", 8, "H100", ("a", "H100")),
        place("b", 4, "L4", ("b", "L4")),
        place("b", 4, "L4", ("b", "L4")),
        place("c", kinds=("c", "CPU")),
    ]
    prices = {"H100": 24.0, "L4": 3.0, "*": 0.5}
    assert charged(places, node_usd_per_hour=prices) == [
        ("node *", 1, 0.5),
        ("node H100", 1, 24.0),
        ("node L4", 1, 3.0),
    ]
    assert charged(places, node_usd_per_hour=2.0) == [
        ("node (H100)", 1, 2.0),
        ("node (L4)", 1, 2.0),
        ("node (cpu)", 1, 2.0),
    ]


def test_without_prices_of_nodes_gpus_are_charged_and_machines_only_at_a_given_price():
    places = [place("a", 8, "H100"), place("b", 2, "H100"), place("b"), place("c"), place("c")]
    assert charged(places) == [("H100", 10, None)]
    assert charged(places, gpu_usd_per_hour=2.0) == [("H100", 10, 2.0), ("cpu", 1, 2.0)]


def test_a_node_of_ray_has_names_by_which_it_may_have_a_price():
    node = {
        "NodeManagerAddress": "10.0.0.7",
        "Labels": {"ray.io/market-type": "spot"},
        "Resources": {"CPU": 8.0, "accelerator_type:H100": 1.0},
    }
    assert kinds_of(node) == ("10.0.0.7", "spot", "H100", "CPU", "accelerator_type:H100")


def test_arguments_of_vllm_reach_its_server():
    from art_local.options import LocalOptions
    from art_local.vllm.command import ServerSettings, arguments

    executor = {"distributed_executor_backend": "ray", "tensor_parallel_size": 16}
    options = RayOptions(engine="vllm", engine_args=executor, lora_rank=32)
    assert options.engine_name() == "vllm"
    local = LocalOptions(**options.local(engine_device="cuda"))
    settings = ServerSettings(
        model="/models/large",
        device="cuda:0",
        dtype="bfloat16",
        context_length=8192,
        max_rank=local.lora_rank,
        adapters=2,
        max_sequences=local.max_batch_size,
        extra=dict(local.engine_args),
    )
    words = arguments(settings, port=1)
    assert words[words.index("--distributed-executor-backend") + 1] == "ray"
    assert words[words.index("--tensor-parallel-size") + 1] == "16"


def test_requests_to_the_driver_pass_by_a_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.delenv("NO_PROXY", raising=False)
    for _ in range(2):
        reach_directly("http://10.0.0.7:4000/v1")
    assert os.environ["no_proxy"] == "localhost,10.0.0.7"
    assert os.environ["NO_PROXY"] == "10.0.0.7"


def test_the_options_of_the_backend_are_in_its_signature():
    from art_ray.plugin import create

    assert set(inspect.signature(create).parameters) == set(attrs.fields_dict(RayOptions))
    assert importlib.metadata.version("ray")
