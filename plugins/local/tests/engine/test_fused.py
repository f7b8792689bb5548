"""Sampling by fused layers with packed weights: what prompts share, changes of weights, and models
or machines for which it does not work.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import weakref

import pytest
import torch
from engine_helpers import (
    assert_logprobs_are_the_models,
    ids,
    noisy_copy,
    sample,
)

from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine, choose, packed
from art_local.engine.fused import DECODERS
from art_local.engine.prefixes import BLOCK, Prefixes
from art_local.engine.weights import Adapter

pytestmark = pytest.mark.torch
SHORT = Sampling(max_tokens=12, temperature=0.0)
HIT_RATE = "throughput/engine_prefix_hit_rate"


def text(number, length):
    return [3 + (7 * place + 31 * number) % 50 for place in range(length)]


@pytest.fixture
async def engine(model):
    engine = TransformersEngine(model)
    assert engine.state == "fused"
    yield engine
    await engine.close()


async def test_a_turn_computes_only_what_is_new_also_when_others_ran_in_between(
    model, engine
) -> None:
    prompts = {number: text(number, 70) for number in range(4)}
    for _ in range(3):
        answers = await asyncio.gather(*[sample(engine, p, SHORT) for p in prompts.values()])
        for number, tokens in enumerate(answers):
            assert_logprobs_are_the_models(model, prompts[number], tokens)
            prompts[number] = [*prompts[number], *ids(tokens), *text(number, 9)]
        rate = engine.step_metrics()[HIT_RATE]
    # prompts of 112 tokens: what they repeat are 91 + 11 tokens, the last one was never an input
    assert rate == 3 * BLOCK / 112
    assert engine.step_metrics() == {}


async def test_equal_prompts_are_computed_once_however_they_arrive(model, engine) -> None:
    prompt = text(0, 2 * BLOCK + 1)
    await asyncio.gather(*[sample(engine, prompt, SHORT) for _ in range(4)])
    assert engine.step_metrics()[HIT_RATE] == 3 / 4
    tokens = await sample(engine, prompt, SHORT)
    assert_logprobs_are_the_models(model, prompt, tokens)
    assert engine.step_metrics()[HIT_RATE] == 2 * BLOCK / len(prompt)


async def test_prompts_that_arrive_together_share_their_beginnings(model, engine) -> None:
    system = text(0, 21)
    prompts = [system, [*system, *text(1, 9)], [*system, *text(2, 9)], [*system, *text(1, 4), 60]]
    prompts += [text(5, 12), [*text(5, 12), 7, 8]]
    answers = await asyncio.gather(*[sample(engine, prompt, SHORT) for prompt in prompts])
    for prompt, tokens in zip(prompts, answers, strict=True):
        assert_logprobs_are_the_models(model, prompt, tokens)
    # 20 of the system's tokens, or all 21; 25 with a second beginning; 12 of the last prompt
    computed = 21 + 9 + 9 + 1 + 12 + 2
    asked = sum(map(len, prompts))
    assert engine.step_metrics()[HIT_RATE] == pytest.approx((asked - computed) / asked)


async def test_layers_of_which_some_have_biases(model) -> None:
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for linear in (layer.self_attn.k_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.bias = torch.nn.Parameter(torch.randn(linear.out_features) / 10)
    engine = TransformersEngine(model)
    assert engine.state == "fused"
    prompt = text(0, 20)
    assert_logprobs_are_the_models(model, prompt, await sample(engine, prompt, SHORT))
    await engine.close()


def test_architectures_whose_layers_are_not_known_are_not_fused(model, caplog) -> None:
    caplog.set_level("INFO", "art_local")
    model = copy.deepcopy(model)
    model.config.model_type = "ministral3"
    assert choose.make_forward(model).name == "slots"
    (line,) = [record.message for record in caplog.records]
    assert line == "Qwen3ForCausalLM is sampled by its own layers, which can't be fused"


async def test_a_long_prompt_attends_in_pieces(model, engine, monkeypatch) -> None:
    monkeypatch.setattr("art_local.engine.fused.PIECE", 10)
    first, longer = text(0, BLOCK + 3), text(0, 3 * BLOCK)
    for prompt in (first, longer):
        assert_logprobs_are_the_models(model, prompt, await sample(engine, prompt, SHORT))
    assert 0 < engine.step_metrics()[HIT_RATE] < 0.5


async def test_kept_tokens_have_a_bound_and_leave_room_for_running_ones(model) -> None:
    engine = TransformersEngine(model)
    per_token = engine._worker._forward.cache_bytes_per_token
    await engine.close()
    engine = TransformersEngine(model, cache_bytes=per_token * 8 * BLOCK)
    prefixes = engine._worker._forward.prefixes
    for number in range(6):
        prompt = text(number, BLOCK + 5)
        assert_logprobs_are_the_models(model, prompt, await sample(engine, prompt, SHORT))
        assert prefixes.tokens <= 2 * BLOCK
    assert prefixes.tokens == 2 * BLOCK
    await sample(engine, text(9, 7 * BLOCK + 20), Sampling(max_tokens=12, temperature=0.0))
    assert prefixes.tokens <= 2 * BLOCK
    await engine.close()


async def test_adapters_keep_their_own_prompts_and_weights(model, engine) -> None:
    models = {"base": model}
    for seed in range(DECODERS + 1):
        models[str(seed)], tensors = noisy_copy(model, seed)
        engine.load(str(seed), tensors)
    prompt = text(0, 2 * BLOCK)
    for _ in range(2):
        for name, other in models.items():
            tokens = await sample(engine, prompt, SHORT, name)
            assert_logprobs_are_the_models(other, prompt, tokens)


async def test_weights_that_are_changed_in_place_are_packed_again(model) -> None:
    model, prompt = copy.deepcopy(model), text(0, 2 * BLOCK)
    engine = TransformersEngine(model)
    await sample(engine, prompt, SHORT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    tokens = await sample(engine, prompt, SHORT)
    assert_logprobs_are_the_models(model, prompt, tokens)
    await engine.close()


async def test_an_unloaded_adapter_leaves_nothing_behind(model, engine) -> None:
    _, tensors = noisy_copy(model)
    engine.load("other", tensors)
    await sample(engine, text(0, 2 * BLOCK), SHORT, "other")
    forward = engine._worker._forward
    held = weakref.ref(forward._decoders[engine._weights.get("other")])
    assert forward.prefixes.tokens
    engine.unload("other")
    gc.disable()
    try:
        await sample(engine, [5, 6], SHORT)
        for _ in range(200):
            if held() is None and not forward.prefixes.tokens:
                break
            await asyncio.sleep(0.01)
    finally:
        gc.enable()
    assert held() is None
    assert forward.prefixes.tokens == 0


@pytest.mark.parametrize("fault", ["no such operation", "wrong values"])
async def test_a_machine_whose_packed_products_fail_uses_torchs_own(
    model, caplog, monkeypatch, fault
) -> None:
    def broken(*_):
        if fault == "no such operation":
            raise AttributeError(fault)
        return torch.zeros(32, 16).to_mkldnn()

    packed.can_pack.cache_clear()
    monkeypatch.setattr(packed, "_packed", broken)
    engine = TransformersEngine(model)
    try:
        assert engine.state == "fused"
        assert_logprobs_are_the_models(model, [5, 6, 7], await sample(engine, [5, 6, 7], SHORT))
    finally:
        packed.can_pack.cache_clear()
        await engine.close()
    (line,) = [r.message for r in caplog.records if "oneDNN" in r.message]
    assert line.startswith("sampling uses torch's own products")


def test_weights_in_other_types_are_not_packed() -> None:
    assert not packed.can_pack("cpu", torch.float64)
    assert not packed.can_pack("cuda", torch.float32)
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64)
    ours = packed.product(layer.weight, layer.bias)
    assert torch.equal(ours(x), layer(x))
    assert torch.equal(ours.plus(x, torch.ones(2, 3, dtype=torch.float64)), layer(x) + 1)


def test_without_memory_for_packed_weights_the_model_is_used_as_it_is(model, caplog) -> None:
    forward = choose.make_forward(model, free_bytes=1000)
    assert forward.name == "slots"
    assert "at most half is used for them" in caplog.text


def test_blocks_are_shared_and_the_oldest_goes_first() -> None:
    prefixes, one, other = Prefixes(), Adapter("one"), Adapter("other")
    reads = []

    def read(begin, end):
        reads.append(begin)
        return torch.zeros(1, 2, 1, end - begin, 1)

    first, second = list(range(2 * BLOCK + 3)), [*range(BLOCK), *range(500, 500 + BLOCK)]
    prefixes.keep(one, first, read)
    prefixes.keep(one, second, read)
    prefixes.keep(other, second, read)
    assert reads == [0, BLOCK, BLOCK, 0, BLOCK]
    assert prefixes.tokens == 5 * BLOCK
    assert len(prefixes.longest(one, first)) == 2
    prefixes.shrink(4 * BLOCK)
    # of the adapter that was kept first, the block that was not used for the longest time
    assert [len(prefixes.longest(one, ids)) for ids in (first, second)] == [2, 1]
    prefixes.shrink(2 * BLOCK)
    assert [len(prefixes.longest(a, second)) for a in (one, other)] == [0, 2]
    prefixes.forget(other)
    prefixes.shrink(-1)
    assert prefixes.tokens == 0
