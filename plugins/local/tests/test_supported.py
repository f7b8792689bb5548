"""Base models that cannot be served or trained are refused in words when they are registered."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import art_core as art
from art_core.base.errors import BackendError, ConfigError
from art_local.engines import model_facts
from art_local.models.load import auto_class, load_model, refused_unless_possible
from art_local.models.placement import placement
from art_local.testing.tiny import save_tiny_model

SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": 258,
}  # fmt: skip


@pytest.fixture
def base(tmp_path):
    return save_tiny_model(tmp_path / "base")


def edit(base, **changes):
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


async def refusal(base):
    """What registering a base model raises."""
    model = art.TrainableModel(
        name="m", project="p", base_model=str(base), base_path=base.parent / "runs", sinks=[]
    )
    backend = art.backend(
        "local", device="cpu", dtype="float32", engine="transformers", lora_rank=4, progress=False
    )
    try:
        with pytest.raises(ConfigError) as error:
            await model.register(backend)
    finally:
        await backend.close()
        await model.close()
    return str(error.value)


async def test_a_model_that_changes_its_weights_is_named(base):
    config = transformers.RwkvConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    assert "RwkvForCausalLM changes its own weights" in await refusal(base)


async def test_an_architecture_that_transformers_does_not_know_is_named(base):
    edit(base, model_type="brand_new", architectures=["BrandNewForCausalLM"])
    found = await refusal(base)
    assert "BrandNewForCausalLM cannot be loaded" in found
    assert "`brand_new`" in found


async def test_an_architecture_without_a_language_model_is_named(base):
    edit(base, model_type="vit", architectures=["ViTForImageClassification"])
    assert "ViTForImageClassification cannot be loaded" in await refusal(base)


async def test_an_encoder_decoder_is_no_causal_language_model(base):
    edit(base, model_type="t5", architectures=["T5ForConditionalGeneration"])
    found = await refusal(base)
    assert "T5ForConditionalGeneration cannot be loaded here: transformers has no causal" in found


async def test_code_that_comes_with_a_model_is_named_and_not_run(base):
    files = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    edit(base, model_type="fancy", architectures=["FancyForCausalLM"], auto_map=files)
    (base / "code.py").write_text("raise SystemExit('it ran')")
    assert "FancyForCausalLM needs Python code that comes with the model" in await refusal(base)


async def test_quantized_weights_that_cannot_become_floats_are_named(base):
    edit(base, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "Qwen3ForCausalLM has quantized weights (gptq)" in await refusal(base)


async def test_an_assertion_of_a_library_is_a_refusal(base):
    edit(base, vocab_size=100)  # the padding token is beyond it
    assert "Qwen3ForCausalLM cannot be loaded" in await refusal(base)


def test_weights_in_fp8_are_loaded_as_floats(base):
    file = base / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    whole = tensors[name].float()
    scale = whole.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    for key in [key for key in tensors if "_proj" in key]:
        blocks = tensors[key].shape
        tensors[f"{key}_scale_inv"] = scale * torch.ones(blocks[0] // 16, blocks[1] // 16)
        tensors[key] = (tensors[key].float() / scale).to(torch.float8_e4m3fn)
    save_file(tensors, file, metadata={"format": "pt"})
    edit(base, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    model = load_model(base, placement("cpu", "float32"), torch.float32)
    torch.testing.assert_close(model.get_parameter(name), whole, atol=0.05, rtol=0.07)
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.parametrize("saved", ["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM", None])
def test_a_model_with_other_parts_is_loaded_as_it_was_saved(saved):
    config = transformers.Qwen3_5Config(architectures=None if saved is None else [saved])
    text = saved == "Qwen3_5ForCausalLM"
    expected = AutoModelForCausalLM if text else transformers.AutoModelForImageTextToText
    assert auto_class(config) is expected


async def test_weights_that_lack_parameters_are_never_drawn_at_random(base):
    edit(base, tie_word_embeddings=False, architectures=["Qwen3ForSequenceClassification"])
    found = await refusal(base)
    assert "lacks 1 weights of Qwen3ForCausalLM, 'lm_head.weight' first" in found
    assert "saved as Qwen3ForSequenceClassification" in found


async def test_weights_of_other_shapes_are_a_refusal(base):
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, file, metadata={"format": "pt"})
    assert "Qwen3ForCausalLM cannot be loaded" in await refusal(base)


async def test_a_model_that_sees_later_tokens_is_no_language_model(base):
    config = transformers.Gemma3TextConfig(**SIZES, use_bidirectional_attention=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    assert "Gemma3ForCausalLM is no causal language model" in await refusal(base)


def test_vllm_and_trainer_have_equal_rotary_positions_or_the_model_is_refused(base):
    longrope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 16, "long_factor": [2.0] * 16,
    }  # fmt: skip
    edit(base, rope_parameters=longrope)
    assert model_facts(base, 64).context_length == 64
    with pytest.raises(ConfigError, match="context_length=64"):
        model_facts(base, None)


def test_errors_of_our_own_and_a_lack_of_memory_are_no_refusal():
    for error in (BackendError("ours"), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)), refused_unless_possible("Some model", "loaded"):
            raise error
