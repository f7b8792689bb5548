"""Options in the worker, without Unsloth: engines, limits, layers."""

from __future__ import annotations

import pytest

import art_core as art

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def test_on_cuda_vllm_serves_since_the_embedded_engine_cannot_run_unsloths_kernels():
    from art_unsloth.training import _engine

    on_a_gpu = {"on_cuda": True, "here": True}
    assert _engine("auto", fast=None, **on_a_gpu) == "vllm"
    assert _engine("auto", fast=True, **on_a_gpu) == "vllm"
    assert _engine("auto", on_cuda=False, fast=None, here=True) == "auto"
    assert _engine("vllm", on_cuda=False, fast=False, here=True) == "vllm"
    for engine, fast, here in (
        ("auto", False, True),
        ("transformers", None, True),
        ("auto", None, False),
    ):
        with pytest.raises(art.ConfigError, match="on CUDA the backend 'unsloth' serves with vLLM"):
            _engine(engine, on_cuda=True, fast=fast, here=here)


@pytest.mark.parametrize(
    ("merges", "mode", "asked"),
    [
        (False, "auto", "unsloth"),
        (False, True, "unsloth"),
        (False, False, False),
        (True, True, False),
    ],
)
def test_unsloth_checkpoints_on_cuda_unless_that_is_switched_off(merges, mode, asked):
    from art_unsloth.training import UnslothLoader

    loader = UnslothLoader(
        max_seq_length=None, load_in_4bit=False, merges=merges, activation_checkpointing=mode
    )
    assert loader._checkpointing == asked


def test_a_sequence_that_unsloth_would_cut_is_refused():
    from art_unsloth.training import _Limit

    layer = torch.nn.Embedding(4, 2)
    layer.register_forward_pre_hook(_Limit(8))
    assert layer(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 2)
    with pytest.raises(art.ConfigError, match="a sequence has 9 tokens, and max_seq_length is 8"):
        layer(torch.zeros(2, 9, dtype=torch.long))


def test_all_linear_layers_but_the_output_head_get_lora(tiny_directory):
    from art_local.models.load import load_model
    from art_local.models.placement import placement
    from art_unsloth.training import _linear_layers

    model = load_model(tiny_directory, placement("cpu", "float32"), torch.float32)
    assert _linear_layers(model) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
