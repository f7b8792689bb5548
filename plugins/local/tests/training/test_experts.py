"""LoRA of mixtures of experts, whose experts are stacked parameters."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from art_core.rl.config import TrainConfig
from art_local.training.lora import lora_layers
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
TWO = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
}  # fmt: skip
CONFIGS = {
    "Qwen3Moe": TWO | {"head_dim": 8},
    "Qwen2Moe": TWO | {"shared_expert_intermediate_size": 24},
    "Glm4Moe": ROUTED | {"head_dim": 8},
    "Mixtral": LOCAL,
    "GptOss": LOCAL | {"head_dim": 8, "layer_types": ["full_attention"] * 2},
    "GraniteMoe": LOCAL,
    "Phimoe": LOCAL | {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0},
}
IDS = torch.arange(1, 41).reshape(2, 20)
families = pytest.mark.parametrize("family", CONFIGS)


def made(family):
    config = getattr(transformers, f"{family}Config")(**SIZES, **CONFIGS[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def moved(family, **options):
    """A policy whose A and B have values as training would give them."""
    policy = Policy(made(family), dtype=torch.float32, lora=(4, 8), seed=0, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    policy.refresh()
    return policy


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def gradients(policy):
    policy.model(input_ids=IDS).logits.square().mean().backward()
    return {name: p.grad for name, p in policy.trained().items()}


@families
def test_all_linear_layers_and_all_experts_are_adapted(family):
    policy = Policy(made(family), dtype=torch.float32, lora=(4, 8), seed=0)
    adapted = set(lora_layers(policy.model))
    matrices = {
        name
        for name, p in made(family).named_parameters()
        if p.dim() >= 2 and "bias" not in name and "router" not in name
        and not name.endswith(("lm_head.weight", "embed_tokens.weight", ".gate.weight"))
    }  # fmt: skip
    assert {name for name in adapted if "router" not in name} == matrices


@families
def test_logits_and_gradients_are_those_of_pefts_own_forward(family):
    one, other = moved(family), moved(family)
    for layer in lora_layers(other.model).values():
        del layer.forward
    torch.testing.assert_close(logits(one.model), logits(other.model), rtol=1e-4, atol=1e-5)
    ours, theirs = gradients(one), gradients(other)
    assert all(bool(g.abs().sum() > 0) for name, g in ours.items() if "expert" in name)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@families
def test_served_weights_and_the_adapter_in_peft_are_the_trained_model(family, tmp_path):
    policy = moved(family)
    wanted = logits(policy.model)

    served = made(family)
    served.load_state_dict(policy.serving, strict=False)
    torch.testing.assert_close(logits(served), wanted, rtol=1e-4, atol=1e-5)
    stored = policy.serving_of({n: p.detach() for n, p in policy.trained().items()})
    assert all(torch.equal(stored[name], policy.serving[name]) for name in policy.serving)

    policy.save(tmp_path, "a base model")
    loaded = PeftModel.from_pretrained(made(family), tmp_path)
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-5)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(made(family)), wanted, atol=1e-2)


def test_a_step_moves_experts_and_a_disabled_adapter_is_the_base(sequences):
    policy = Policy(made("Qwen3Moe"), dtype=torch.float32, lora=(4, 8), seed=0)
    base = logits(policy.model)
    Trainer(policy, progress=False).step(sequences, TrainConfig(learning_rate=1e-2))
    assert not torch.allclose(logits(policy.model), base, atol=1e-4)
    with policy.model.disable_adapter():
        torch.testing.assert_close(logits(policy.model), base)
    name = "model.layers.0.mlp.experts.down_proj"
    assert not torch.equal(policy.serving[name], made("Qwen3Moe").get_parameter(name))


def test_for_an_engine_that_is_given_adapters_experts_stay_and_a_warning_names_them(caplog):
    with caplog.at_level(logging.WARNING, logger="art_local"):
        policy = moved("Glm4Moe", merged=False)
    assert not any("mlp.experts.down_proj" in name for name in lora_layers(policy.model))
    assert "model.layers.0.mlp.gate_proj.weight" in lora_layers(policy.model)
    assert caplog.text.count("the experts of Glm4MoeForCausalLM stay as they are") == 1
    assert "mlp.experts.gate_up_proj" in caplog.text
    assert not torch.allclose(logits(policy.model), logits(made("Glm4Moe")), atol=1e-2)
