"""LoRA in unusual architectures, and the warnings about layers that it does not change."""

from __future__ import annotations

import logging

import pytest
import torch

from art_local.testing.families import make_family
from art_local.training.lora import lora_layers
from art_local.training.policy import Policy


def made(family, caplog, **options):
    """Return a policy of a family, the base parameters that it adapts, and its warnings."""
    with caplog.at_level(logging.WARNING, "art_local"):
        policy = Policy(make_family(family), dtype=torch.float32, lora=(4, 8), seed=0, **options)
    warnings = [record.getMessage() for record in caplog.records if record.name == "art_local"]
    return policy, set(lora_layers(policy.model)), warnings


@pytest.mark.parametrize("merged", [True, False])
def test_experts_that_lora_cannot_reach_are_named_once(merged, caplog):
    _, adapted, warnings = made("DBRX", caplog, merged=merged)
    (warning,) = warnings
    assert "ffn.experts.mlp.v1, ffn.experts.mlp.w1, ffn.experts.mlp.w2" in warning
    assert "full_finetune=True" in warning
    assert "transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight" in adapted


@pytest.mark.parametrize("family", ["Qwen3 MoE", "Llama 4, text", "Aria, text"])
def test_experts_that_lora_changes_need_no_warning(family, caplog):
    policy, adapted, warnings = made(family, caplog)
    assert warnings == []
    stacked = {
        name
        for name, p in make_family(family).named_parameters()
        if "expert" in name and p.dim() == 3
    }
    assert stacked and stacked <= adapted
    assert all(policy.serving[name].dim() == 3 for name in stacked)


def test_a_layer_whose_weight_kernels_read_is_left_out_in_words(caplog):
    _, adapted, warnings = made("Mamba", caplog)
    assert adapted == {
        f"backbone.layers.{layer}.mixer.{name}.weight"
        for layer in (0, 1)
        for name in ("in_proj", "x_proj", "dt_proj")
    }
    (warning,) = warnings
    assert "LoRA leaves some layers of MambaForCausalLM as they are (mixer.out_proj)" in warning


def test_a_weight_that_layers_share_is_left_out_in_words(caplog):
    _, adapted, warnings = made("Zamba", caplog)
    assert adapted and not any("shared_transf" in name for name in adapted)
    (warning,) = warnings
    assert "shared_transf.self_attn.q_proj" in warning
    assert "layers share their weights" in warning


def test_linear_layers_with_a_product_of_their_own_are_named(caplog):
    _, adapted, warnings = made("DeepSeek V4", caplog)
    assert any(name.endswith("mlp.experts.down_proj") for name in adapted)
    (warning,) = warnings
    assert "(self_attn.o_a_proj): they compute more than a product" in warning
