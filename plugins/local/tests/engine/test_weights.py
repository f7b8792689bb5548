"""Weights in the embedded engine: several at once, replaced, refused."""

from __future__ import annotations

import asyncio
import copy

import pytest
import torch
from engine_helpers import GREEDY, PROMPTS, assert_logprobs_are_the_models, ids, noisy_copy, sample

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine
from art_local.engine.weights import Weights

pytestmark = pytest.mark.torch


async def test_adapters_and_base_mixed_in_flight_each_sample_as_alone(engine, model) -> None:
    others = [noisy_copy(model, seed) for seed in (1, 2)]
    for k, (_, tensors) in enumerate(others):
        engine.load(f"step-{k}", tensors)
    assert engine.adapters == ["base", "step-0", "step-1"]
    names = ["base", "step-0", "step-1"] * 4
    answers = await asyncio.gather(*[sample(engine, PROMPTS[0], GREEDY, name) for name in names])
    by_name = {"base": model, "step-0": others[0][0], "step-1": others[1][0]}
    for name, tokens in zip(names, answers, strict=True):
        assert_logprobs_are_the_models(by_name[name], PROMPTS[0], tokens)
    assert len({tuple(ids(tokens)) for tokens in answers}) == 3


async def test_a_request_keeps_its_weights_when_its_adapter_is_replaced_or_unloaded(
    engine, model
) -> None:
    first, tensors = noisy_copy(model, 1)
    second, others = noisy_copy(model, 2)
    engine.load("now", tensors)
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=40, seed=1), "now")
    tokens = [await anext(stream)]
    engine.load("now", others)
    new = await sample(engine, PROMPTS[0], GREEDY, "now")
    engine.unload("now")
    tokens += [token async for token in stream]
    assert_logprobs_are_the_models(first, PROMPTS[0], tokens)
    assert_logprobs_are_the_models(second, PROMPTS[0], new)
    with pytest.raises(EngineError, match="no adapter 'now'; loaded: base"):
        await sample(engine, PROMPTS[0], GREEDY, "now")


async def test_unloading_base_or_an_unknown_name_does_nothing(engine) -> None:
    engine.unload("base")
    engine.unload("never")
    assert engine.adapters == ["base"]


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
async def test_the_base_is_shared_and_survives_peft_in_the_original(model) -> None:
    from peft import LoraConfig, get_peft_model

    own = copy.deepcopy(model)
    engine = TransformersEngine(own)
    shared = {p.data_ptr() for p in own.parameters()}
    assert {p.data_ptr() for p in engine._weights.module.parameters()} == shared
    before = await sample(engine, PROMPTS[0])
    lora = get_peft_model(
        own, LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
    )
    assert ids(await sample(engine, PROMPTS[0])) == ids(before)
    merged = {}
    for name, module in lora.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.base_layer.weight + module.get_delta_weight("default")
            merged[f"{name}.weight"] = weight
    engine.load("lora", merged)
    tokens = await sample(engine, PROMPTS[0], GREEDY, "lora")
    assert_logprobs_are_the_models(lora.eval(), PROMPTS[0], tokens)
    await engine.close()


def test_a_tied_parameter_given_once_reaches_both_places(model) -> None:
    weights = Weights(model)
    new = torch.zeros_like(model.get_input_embeddings().weight)
    weights.load("zero", {"model.embed_tokens.weight": new})
    weights.activate(weights.get("zero"))
    assert weights.module.lm_head.weight is weights.module.model.embed_tokens.weight
    assert not weights.module.lm_head.weight.any()
    weights.load("head", {"lm_head.weight": new})
    weights.activate(weights.get("head"))
    assert not weights.module.lm_head.weight.any()
    assert weights.module.model.embed_tokens.weight.any()


def test_a_parameter_that_does_not_fit_is_refused_by_name(model) -> None:
    weights = Weights(model)
    with pytest.raises(ConfigError, match=r"no parameter 'model\.norm\.wait'.*Did you mean"):
        weights.load("x", {"model.norm.wait": torch.zeros(128)})
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' has shape \[128\], got \[3\]"):
        weights.load("x", {"model.norm.weight": torch.zeros(3)})


async def test_weights_that_are_not_finite_fail_their_requests_alone(engine, model) -> None:
    engine.load("nan", {"model.norm.weight": torch.full((128,), float("nan"))})
    bad, good = await asyncio.gather(
        sample(engine, PROMPTS[0], GREEDY, "nan"),
        sample(engine, PROMPTS[0]),
        return_exceptions=True,
    )
    assert isinstance(bad, EngineError) and "not finite" in str(bad)
    assert len(good) == 24
