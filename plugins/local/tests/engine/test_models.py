"""The embedded engine on other architectures reports the log-probs of their own forward pass."""

from __future__ import annotations

import asyncio

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from art_core.base.errors import ConfigError
from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine
from art_local.engine.batch import Batch
from art_local.engine.layer_types import (
    UNLIMITED_CONTEXT,
    cache_parameter,
    check_servable,
    context_length,
)

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
FUSED = {
    "Llama": SIZES,
    "Mistral": SIZES | {"sliding_window": 8},
    "Qwen2": SIZES,
    "Qwen3": SIZES | {"head_dim": 16},
}
MODELS = {
    "Gemma2": SIZES | SLIDING,
    "Gemma3Text": SIZES | SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "Granite": SIZES | {"logits_scaling": 4.0},
    "Cohere": SIZES,
    "Qwen3Moe": SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "GPT2": GPT2 | {"bos_token_id": 1, "eos_token_id": 2},
}
MAMBA = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
OWN_CACHE = {
    "Mamba": MAMBA | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "Lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "Bloom": {"vocab_size": 64, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "Llama4Text": SIZES
    | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2}
    | {"attention_chunk_size": 8},
    "GPTNeo": SIZES
    | {"num_layers": 2, "num_heads": 4, "window_size": 8}
    | {"attention_types": [[["global", "local"], 1]]},
}
WHOLE_TEXTS = {
    "OpenAIGPT": GPT2,
    "Bamba": SIZES
    | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
}


def random_model(name, options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(10)  # a fresh model is nearly uniform: errors would not show
    return model.eval()


@pytest.mark.parametrize(
    ("name", "state"),
    [*((name, "fused") for name in FUSED), *((name, "slots") for name in MODELS)],
)
async def test_log_probs_are_those_of_a_plain_forward_for(name, state) -> None:
    model = random_model(name, {**FUSED, **MODELS}[name])
    engine = TransformersEngine(model)
    assert engine.state == state
    assert_logprobs_are_of_whole_texts(model, await answers_of(engine))
    await engine.close()


async def answers_of(engine, count=6):
    """Tokens of prompts, of which each two are equal, that end at different times."""
    prompts = [list(range(3, 3 + length)) for length in (5, 12, 20)] * (count // 3)

    async def sample(place, prompt):
        sampling = Sampling(max_tokens=6 + 3 * place, seed=place)
        return [token async for token in engine.generate(prompt, sampling)]

    answers = await asyncio.gather(*[sample(i, prompt) for i, prompt in enumerate(prompts)])
    return list(zip(prompts, answers, strict=True))


def assert_logprobs_are_of_whole_texts(model, answers):
    for prompt, tokens in answers:
        ids = [token.id for token in tokens]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids]), use_cache=False).logits.float()
        rows = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(ids)[:, None])[:, 0]
        found = torch.tensor([token.logprob for token in tokens])
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        *((name, "own cache") for name in OWN_CACHE),
        *((name, "whole texts") for name in WHOLE_TEXTS),
    ],
)
async def test_models_with_another_state_give_the_log_probs_of_whole_texts(name, state) -> None:
    model = random_model(name, {**OWN_CACHE, **WHOLE_TEXTS}[name])
    engine = TransformersEngine(model)
    assert engine.state == state
    assert_logprobs_are_of_whole_texts(model, await answers_of(engine))
    await engine.close()


async def test_rows_that_leave_a_full_cache_of_the_model_come_back_with_the_same_tokens(
    monkeypatch,
) -> None:
    model, most, sampled = random_model("Lfm2", OWN_CACHE["Lfm2"]), [], Batch._sample

    def watched(batch, *args):
        most.append(len(batch.rows))
        return sampled(batch, *args)

    roomy = TransformersEngine(model)
    expected = await answers_of(roomy)
    monkeypatch.setattr(Batch, "_sample", watched)
    engine = TransformersEngine(model, cache_bytes=100 * 256)
    found = await answers_of(engine)
    assert [[t.id for t in tokens] for _, tokens in found] == [
        [t.id for t in tokens] for _, tokens in expected
    ]
    assert_logprobs_are_of_whole_texts(model, found)
    assert 1 < max(most) < 6
    await roomy.close()
    await engine.close()


def test_one_half_of_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="'t5' cannot be served: it is one half"):
        check_servable(transformers.T5Config())


def test_a_model_that_states_no_context_has_one_all_the_same() -> None:
    assert context_length(transformers.LlamaConfig(**SIZES)) == 128
    assert context_length(transformers.MptConfig(max_seq_len=300)) == 300
    assert context_length(transformers.MambaConfig(**MAMBA)) == UNLIMITED_CONTEXT


def test_the_cache_is_passed_by_the_name_that_forward_has() -> None:
    class FromVersion524:
        def forward(self, input_ids, cache=None, **_): ...

    class Before:
        def forward(self, input_ids, past_key_values=None, **_): ...

    class Without:
        def forward(self, input_ids): ...

    assert cache_parameter(FromVersion524()) == "cache"
    assert cache_parameter(Before()) == "past_key_values"
    assert cache_parameter(Without()) is None
