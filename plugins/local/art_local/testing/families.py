"""Tiny random models of many architectures: hidden 32, 2 layers, vocabulary 97."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES: Mapping[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
HEADS = {"head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
ORIGINAL = {"original_max_position_embeddings": 24}
LONGROPE = {
    **ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4, **ORIGINAL,
    },
}  # fmt: skip
EYES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, dynamic rotary": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, sliding window": ("Mistral", {"sliding_window": 16}),
    "Ministral": ("Ministral", HEADS | SLIDING),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", HEADS),
    "Gemma": ("Gemma", HEADS),
    "Gemma 2": ("Gemma2", HEADS | SLIDING | {"query_pre_attn_scalar": 8}),
    "Gemma 3, text": ("Gemma3Text", HEADS | SLIDING),
    "Gemma 3, with vision": (
        "Gemma3",
        {
            "text_config": dict(SIZES) | HEADS | SLIDING,
            "vision_config": EYES,
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
        },
    ),
    "Mistral Small 3.1": (
        "Mistral3",
        {
            "text_config": {"model_type": "mistral", "sliding_window": None, **SIZES, **HEADS},
            "vision_config": {"model_type": "pixtral", **EYES},
            "image_token_index": 90,
        },
    ),
    "Phi": ("Phi", {}),
    "Phi-3": ("Phi3", {}),
    "Phi-3, longrope": ("Phi3", LONGROPE),
    "Phi-3.5 MoE": ("Phimoe", LOCAL),
    "SmolLM3": ("SmolLM3", {}),
    "OLMo": ("Olmo", {}),
    "OLMo 2": ("Olmo2", {}),
    "OLMo 3": ("Olmo3", SLIDING),
    "OLMoE": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": ("Granite", {"logits_scaling": 2.0}),
    "Granite MoE": ("GraniteMoe", LOCAL),
    "Granite MoE, shared": ("GraniteMoeShared", LOCAL | {"shared_intermediate_size": 24}),
    "Cohere": ("Cohere", {}),
    "Cohere 2": ("Cohere2", SLIDING),
    "GLM": ("Glm", HEADS),
    "GLM 4": ("Glm4", HEADS),
    "GLM 4 MoE": ("Glm4Moe", HEADS | ROUTED),
    "StableLM": ("StableLm", {}),
    "StarCoder 2": ("Starcoder2", {}),
    "Nemotron": ("Nemotron", {}),
    "EXAONE 4": ("Exaone4", SLIDING),
    "ERNIE 4.5": ("Ernie4_5", HEADS),
    "Seed-OSS": ("SeedOss", HEADS),
    "Helium": ("Helium", HEADS),
    "Arcee": ("Arcee", {}),
    "Apertus": ("Apertus", {}),
    "Hunyuan": ("HunYuanDenseV1", HEADS),
    "MiniMax": ("MiniMax", LOCAL | HEADS),
    "Mixtral": ("Mixtral", LOCAL),
    "Qwen2 MoE": ("Qwen2Moe", MOE | {"shared_expert_intermediate_size": 24}),
    "Qwen3 MoE": ("Qwen3Moe", MOE | HEADS),
    "DeepSeek V2": ("DeepseekV2", ROUTED | LATENT),
    "DeepSeek V3": ("DeepseekV3", ROUTED | LATENT),
    "gpt-oss": ("GptOss", LOCAL | HEADS | SLIDING),
    "GPT-2": ("GPT2", {}),
    "GPT-NeoX": ("GPTNeoX", {}),
    "GPT-J": ("GPTJ", {"rotary_dim": 4}),
    "GPT BigCode": ("GPTBigCode", {}),
    "OPT": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Falcon": ("Falcon", {"new_decoder_architecture": True}),
    "BLOOM": ("Bloom", {"max_position_embeddings": None}),
    "MPT": ("Mpt", {"max_position_embeddings": None}),
    "Qwen3-Next": ("Qwen3Next", MOE | HEADS),
    "Llama 4": (
        "Llama4Text",
        HEADS | {"num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 64},
    ),
    "Falcon H1": ("FalconH1", HEADS | MAMBA),
    "Jamba": ("Jamba", {"num_experts": 2, "use_mamba_kernels": False}),
    "Bamba": ("Bamba", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}),
    "LFM 2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "RecurrentGemma": ("RecurrentGemma", HEADS),
    "Mamba": ("Mamba", {"state_size": 8}),
    "Mamba 2": ("Mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "BERT": ("Bert", {"is_decoder": False}),
}


def make_family(name: str) -> Any:
    """Return a random model of a family, in fp32; equal names give equal weights."""
    import torch
    import transformers

    from art_local.models.load import auto_class

    kind, options = FAMILIES[name]
    sizes = {} if "text_config" in options else SIZES
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(5)  # log-probs of fresh weights hardly differ
    return model
