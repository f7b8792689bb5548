"""A policy whose packed rows differ from its rows is trained in rows, with a warning."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.training import attention
from art_local.training.layout import Shape, layout_of
from art_local.training.packing import can_pack, packing_difference
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer


@pytest.fixture
def made():
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 60, (20,), generator=generator).tolist()
    sequences = []
    for place in range(6):
        ids = prompt + torch.randint(0, 60, (6 + place,), generator=generator).tolist()
        trainable = [at >= 20 for at in range(len(ids))]
        sequences.append(
            TokenSequence(
                token_ids=tuple(ids),
                trainable=tuple(trainable),
                logprobs=tuple(-5.5 if t else 0.0 for t in trainable),
                advantage=1.0 if place % 2 else -1.0,
            )
        )
    return sequences


@pytest.fixture
def broken_mask(monkeypatch):
    """Attention that lets each token see all before it, those of other sequences too."""
    real = attention._packed

    def wrong(query, key, value, layout, scale):
        whole = layout_of([Shape(prefix=0, segments=(len(layout.positions_S),))])
        return real(query, key, value, whole, scale)

    monkeypatch.setattr(attention, "_packed", wrong)


def custom(**options):
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **options,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return Policy(model, dtype=torch.float32, lora=None, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_mask_passes_by_far(make_policy, made, dtype):
    policy = make_policy(dtype=dtype)
    difference = packing_difference(policy, made, chunk_size=64)
    assert difference < (1e-5 if dtype == torch.float32 else 0.01)
    assert can_pack(policy, made, chunk_size=64)


def test_a_wrong_mask_is_found_and_rows_train_as_ever(make_policy, made, broken_mask, caplog):
    policy = make_policy(lora=None)
    found = Trainer(policy, progress=False).step(made, TrainConfig())
    assert policy.packs is False
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "Qwen3ForCausalLM is trained in padded rows" in warning
    assert "differ from those of rows by 0." in warning and "0.001 are allowed" in warning
    wanted = Trainer(make_policy(lora=None), progress=False).step(made, TrainConfig(packing=False))
    assert found == wanted


def test_the_check_is_made_once(make_policy, made, broken_mask, caplog):
    policy = make_policy()
    assert not can_pack(policy, made, chunk_size=64)
    assert not can_pack(policy, made, chunk_size=64)
    assert len(caplog.records) == 1


def test_sliding_windows_are_trained_in_rows(made, caplog):
    policy = custom(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not can_pack(policy, made, chunk_size=64)
    assert "layers of sliding_attention" in caplog.text


@pytest.mark.parametrize(
    ("option", "value"), [("sliding_window", 8), ("softcap", 30.0), ("s_aux", torch.ones(2))]
)
def test_special_attention_is_named(made, caplog, monkeypatch, option, value):
    policy = custom()
    real = attention._check_packable
    monkeypatch.setattr(
        attention, "_check_packable", lambda m, d, o: real(m, d, {**o, option: value})
    )
    assert not can_pack(policy, made, chunk_size=64)
    assert f"its attention has '{option}'" in caplog.text


def test_another_attention_implementation_is_named(made, caplog):
    policy = custom()
    policy.base.set_attn_implementation("eager")
    assert not can_pack(policy, made, chunk_size=64)
    assert "attention implementation is 'eager'" in caplog.text


def test_layers_that_swallow_options_are_found(made, caplog, monkeypatch):
    policy = custom()
    layer = policy.base.model.layers[0]
    real = layer.self_attn.forward
    monkeypatch.setattr(
        layer.self_attn,
        "forward",
        lambda *a, packed_layout=None, **options: real(*a, **options),
    )
    assert not can_pack(policy, made, chunk_size=64)
    assert "do not pass options" in caplog.text


def test_memory_that_runs_out_during_the_check_settles_nothing(make_policy, made):
    policy = make_policy()
    whole = policy.logprobs

    def fail(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    policy.logprobs = fail
    assert not can_pack(policy, made, chunk_size=64)
    assert policy.packs is None
    policy.logprobs = whole
    assert can_pack(policy, made, chunk_size=64)
