"""The embedded engine on other architectures: what it reports is what their own forward says."""

from __future__ import annotations

import asyncio

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from art_core.base.errors import ConfigError
from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine
from art_local.engine.forward import cache_name

pytestmark = pytest.mark.torch
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SLIDING = {"head_dim": 8, "sliding_window": 8}
MODELS = {
    "Llama": SIZES,
    "Gemma2": SIZES | SLIDING,
    "Gemma3Text": SIZES | SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "Granite": SIZES | {"logits_scaling": 4.0},
    "Mistral": SIZES | {"sliding_window": 8},
    "Qwen3Moe": SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "GPT2": GPT2 | {"bos_token_id": 1, "eos_token_id": 2},
}
REFUSED = {
    "Mamba": {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "Bloom": {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2},
}


def random_model(name, options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(10)  # a fresh model is nearly uniform: errors would not show
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
async def test_log_probs_are_those_of_a_plain_forward_for(name) -> None:
    model = random_model(name, MODELS[name])
    engine = TransformersEngine(model)
    prompts = [list(range(3, 3 + length)) for length in (5, 12, 20)]

    async def sample(prompt):
        sampling = Sampling(max_tokens=16, seed=1)
        return [token async for token in engine.generate(prompt, sampling)]

    for prompt, tokens in zip(prompts, await asyncio.gather(*map(sample, prompts)), strict=True):
        ids = [token.id for token in tokens]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits.float()
        rows = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(
            torch.tensor([token.logprob for token in tokens]), expected, atol=1e-4
        )
    await engine.close()


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_needs_more_than_keys_and_values_is_refused(name) -> None:
    with pytest.raises(ConfigError, match=f"cannot run '{name.lower()}'"):
        TransformersEngine(random_model(name, REFUSED[name]))


def test_the_cache_is_passed_by_the_name_that_forward_has() -> None:
    def from_5_24_on(input_ids, cache=None, **_): ...

    def before(input_ids, past_key_values=None, **_): ...

    assert cache_name(from_5_24_on) == "cache"
    assert cache_name(before) == "past_key_values"
