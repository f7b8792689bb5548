"""Tiny random models of many architectures: hidden 32, 2 layers, vocabulary 97."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_local.testing.family_options import (
    CONVOLUTION,
    DBRX,
    ENDS,
    GEMMA_3N,
    GEMMA_4,
    HEADS,
    INDEXED,
    LATENT,
    LINEAR,
    LLAMA_4,
    LOCAL,
    LONGROPE,
    MAMBA,
    MOE,
    ROUTED,
    SHARED,
    SHARED_KEYS,
    SIZES,
    SLIDING,
    ZAMBA,
    Family,
)
from art_local.testing.multimodal import MULTIMODAL

DENSE: Mapping[str, Family] = {
    "Llama": ("Llama", {}),
    "Llama, dynamic rotary": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, sliding window": ("Mistral", {"sliding_window": 16}),
    "Ministral": ("Ministral", HEADS | SLIDING),
    "Ministral 3": ("Ministral3", HEADS | {"sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", HEADS),
    "Gemma": ("Gemma", HEADS),
    "Gemma 2": ("Gemma2", HEADS | SLIDING | {"query_pre_attn_scalar": 8}),
    "Gemma 3, text": ("Gemma3Text", HEADS | SLIDING),
    "Gemma 3n, text": (
        "Gemma3nText",
        GEMMA_3N
        | SLIDING
        | {
            "num_kv_shared_layers": 0,
            "intermediate_size": [48] * 2,
            "activation_sparsity_pattern": [0.0] * 2,
        },
    ),
    "Gemma 3n, shared keys": (
        "Gemma3nText",
        GEMMA_3N
        | SHARED_KEYS
        | {"intermediate_size": [48] * 3, "activation_sparsity_pattern": [0.0] * 3},
    ),
    "Gemma 4, text": ("Gemma4Text", GEMMA_4),
    "Gemma 4, unified": ("Gemma4UnifiedText", HEADS | ENDS | MOE),
    "Gemma 4, shared keys": ("Gemma4Text", GEMMA_4 | SHARED_KEYS),
    "VaultGemma": ("VaultGemma", HEADS | SLIDING),
    "Phi": ("Phi", {}),
    "Phi-3": ("Phi3", {}),
    "Phi-3, longrope": ("Phi3", LONGROPE),
    "SmolLM3": ("SmolLM3", {}),
    "OLMo": ("Olmo", {}),
    "OLMo 2": ("Olmo2", {}),
    "OLMo 3": ("Olmo3", SLIDING),
    "Granite, sliding window": ("GraniteSWA", HEADS),
    "Granite": ("Granite", {"logits_scaling": 2.0}),
    "Cohere": ("Cohere", {}),
    "Cohere 2": ("Cohere2", SLIDING),
    "CWM": ("Cwm", HEADS | SLIDING | ENDS),
    "GLM": ("Glm", HEADS),
    "GLM 4": ("Glm4", HEADS),
    "StableLM": ("StableLm", {}),
    "StarCoder 2": ("Starcoder2", {}),
    "Nemotron": ("Nemotron", {}),
    "EXAONE": ("Exaone", {}),
    "EXAONE 4": ("Exaone4", SLIDING),
    "ERNIE 4.5": ("Ernie4_5", HEADS),
    "Seed-OSS": ("SeedOss", HEADS),
    "Helium": ("Helium", HEADS),
    "Arcee": ("Arcee", {}),
    "Apertus": ("Apertus", {}),
    "Apertus 1.5": ("Apertus1p5Text", HEADS),
    "BitNet": ("BitNet", {}),
    "DiffLlama": ("DiffLlama", {}),
    "Dory": ("Dory", HEADS),
    "Flint": ("Flint", HEADS),
    "HyperCLOVA X": ("HyperCLOVAX", HEADS),
    "Kolibri": ("Kolibri1", HEADS),
    "Doge": ("Doge", {}),
    "HRM": ("HrmText", {}),
    "Hunyuan": ("HunYuanDenseV1", HEADS),
    "InternLM 3": ("InternLM3", HEADS),
    "IQuest Coder": ("IQuestCoder", {}),
    "Jais 2": ("Jais2", {}),
    "MiniCPM 3": ("MiniCPM3", LATENT),
    "NanoChat": ("NanoChat", {}),
    "Persimmon": ("Persimmon", {}),
    "Youtu": ("Youtu", LATENT),
    "GPT": ("OpenAIGPT", {}),
    "GPT-2": ("GPT2", {}),
    "GPT-Neo": (
        "GPTNeo",
        {
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "num_layers": 2,
            "num_heads": 4,
        },
    ),
    "GPT-NeoX": ("GPTNeoX", {}),
    "GPT-NeoX Japanese": ("GPTNeoXJapanese", {"intermediate_multiple_size": 2}),
    "GPT-J": ("GPTJ", {"rotary_dim": 4}),
    "GPT BigCode": ("GPTBigCode", {}),
    "CodeGen": ("CodeGen", {"rotary_dim": 4}),
    "CTRL": ("CTRL", {"dff": 48}),
    "BART, decoder": ("Bart", {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48}),
    "BioGPT": ("BioGpt", {}),
    "XGLM": ("XGLM", {"ffn_dim": 48}),
    "OPT": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Falcon": ("Falcon", {"new_decoder_architecture": True}),
    "Falcon, ALiBi": ("Falcon", {"alibi": True}),
    "BLOOM": ("Bloom", {"max_position_embeddings": None}),
    "MPT": ("Mpt", {"max_position_embeddings": None}),
}
EXPERTS: Mapping[str, Family] = {
    "Mixtral": ("Mixtral", LOCAL),
    "Phi-3.5 MoE": ("Phimoe", LOCAL),
    "OLMoE": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "FlexOlmo": ("FlexOlmo", {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite MoE": ("GraniteMoe", LOCAL),
    "Granite MoE, shared": ("GraniteMoeShared", LOCAL | {"shared_intermediate_size": 24}),
    "Granite MoE, sliding window": ("GraniteMoeSWA", HEADS | LOCAL),
    "DeepSeek V4": (
        "DeepseekV4",
        HEADS | ROUTED | {"q_lora_rank": 8, "o_lora_rank": 8, "o_groups": 2},
    ),
    "MiniMax M3": ("MiniMaxM3VLText", HEADS | LOCAL),
    "Sarvam MoE": ("SarvamMoE", HEADS | MOE),
    "Cohere 2 MoE": ("Cohere2Moe", HEADS | MOE | SLIDING),
    "GLM 4 MoE": ("Glm4Moe", HEADS | ROUTED),
    "GLM 4 MoE, lite": ("Glm4MoeLite", ROUTED | LATENT),
    "Qwen2 MoE": ("Qwen2Moe", MOE | SHARED),
    "Qwen3 MoE": ("Qwen3Moe", MOE | HEADS),
    "DeepSeek V2": ("DeepseekV2", ROUTED | LATENT),
    "DeepSeek V3": ("DeepseekV3", ROUTED | LATENT),
    "gpt-oss": ("GptOss", LOCAL | HEADS | SLIDING),
    "DBRX": ("Dbrx", DBRX),
    "AFMoE": ("Afmoe", HEADS | MOE | SLIDING | {"num_dense_layers": 1}),
    "Aria, text": (
        "AriaText",
        {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    ),
    "A.X K1": ("AXK1", ROUTED | LATENT),
    "dots1": ("Dots1", HEADS | ROUTED),
    "ERNIE 4.5 MoE": (
        "Ernie4_5_Moe",
        {
            **HEADS,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 24,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
    ),
    "EXAONE MoE": ("ExaoneMoe", HEADS | SLIDING | MOE),
    "Hunyuan MoE": (
        "HunYuanMoEV1",
        HEADS | {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 24},
    ),
    "HY 3": ("HYV3", HEADS | MOE),
    "JetMoE": ("JetMoe", LOCAL | {"kv_channels": 8}),
    "LongCat Flash": (
        "LongcatFlash",
        {
            **LATENT,
            "head_dim": 4,
            "num_layers": 1,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 24,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    "Mellum": ("Mellum", HEADS | MOE),
    "MiMo V2 Flash": ("MiMoV2Flash", HEADS | SLIDING | ROUTED),
    "MiniMax M2": ("MiniMaxM2", HEADS | LOCAL),
    "Sarvam MLA": ("SarvamMLA", ROUTED | LATENT),
    "Solar Open": ("SolarOpen", HEADS | ROUTED),
    "Llama 4, text": ("Llama4Text", LLAMA_4),
}
HYBRID: Mapping[str, Family] = {
    "MiniMax": ("MiniMax", LOCAL | HEADS),
    "Qwen3-Next": ("Qwen3Next", MOE | HEADS | LINEAR),
    "Qwen3.5, text": ("Qwen3_5Text", HEADS | LINEAR),
    "Qwen3.5 MoE, text": ("Qwen3_5MoeText", HEADS | MOE | SHARED | LINEAR),
    "OLMo, hybrid": ("OlmoHybrid", LINEAR),
    "Granite MoE, hybrid": (
        "GraniteMoeHybrid",
        LOCAL | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
    ),
    "Kimi Linear": ("KimiLinear", ROUTED | LATENT | MOE | LINEAR),
    "Bailing, hybrid": ("BailingHybrid", ROUTED | LATENT | LINEAR),
    "Falcon H1": (
        "FalconH1",
        HEADS | MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    ),
    "Jamba": ("Jamba", {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "Bamba": ("Bamba", MAMBA | {"attn_layer_indices": [1]}),
    "Nemotron H": (
        "NemotronH",
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "Zamba": (
        "Zamba",
        {
            **ZAMBA,
            "n_mamba_heads": 2,
            "num_hidden_layers": 3,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
        },
    ),
    "Zamba 2": (
        "Zamba2",
        {
            **ZAMBA,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "layers_block_type": ["linear_attention", "hybrid"],
        },
    ),
    "Zaya": ("Zaya", HEADS | MOE | {"num_experts_per_tok": 1, "router_hidden_size": 8}),
    "LFM 2": ("Lfm2", CONVOLUTION),
    "LFM 3": ("Lfm3", HEADS | CONVOLUTION),
    "Lara mini": ("LaraMini", HEADS),
    "Inkling": ("InklingText", HEADS | MOE),
    "LFM 2 MoE": ("Lfm2Moe", MOE | CONVOLUTION | {"num_dense_layers": 1}),
    "RecurrentGemma": (
        "RecurrentGemma",
        {
            **HEADS,
            "block_types": ("recurrent", "attention"),
            "lru_width": 32,
            "attention_window_size": 16,
        },
    ),
    "Mamba": ("Mamba", {"state_size": 8}),
    "Mamba 2": ("Mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "Falcon Mamba": ("FalconMamba", {"state_size": 8}),
    "xLSTM": ("xLSTM", {"hidden_size": 128, "num_heads": 2, "chunk_size": 16}),
}
OTHER: Mapping[str, Family] = {
    "BERT": ("Bert", {"is_decoder": False}),
    "ModernBERT, decoder": (
        "ModernBertDecoder",
        {"layer_types": ["full_attention"] * 2, "cls_token_id": 1, "sep_token_id": 2, **ENDS},
    ),
    "RWKV": ("Rwkv", {}),
    "DeepSeek V3.2": ("DeepseekV32", ROUTED | LATENT | INDEXED),
    "GLM 5": ("GlmMoeDsa", ROUTED | LATENT | INDEXED),
}
FAMILIES: Mapping[str, Family] = {
    **DENSE,
    **EXPERTS,
    **HYBRID,
    **MULTIMODAL,
    **OTHER,
}


def make_family(family: str) -> Any:
    """Return a random model of a family, in fp32; equal names give equal weights."""
    import torch
    import transformers

    from art_local.models.load import auto_class

    kind, options = FAMILIES[family]
    sizes = {} if "text_config" in options else SIZES
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not name.endswith("A_log"):
                parameter.mul_(5)  # log-probs of fresh weights hardly differ
    return model
