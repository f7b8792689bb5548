"""Options of configs that tiny models of several architectures share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Family = tuple[str, Mapping[str, Any]]
"""The beginning of a config class's name in transformers, and its options."""

SIZES: Mapping[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
HEADS = {"head_dim": 8}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"shared_expert_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
INDEXED = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
ORIGINAL = {"original_max_position_embeddings": 24}
LONGROPE = {
    **ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4, **ORIGINAL,
    },
}  # fmt: skip
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
SHARED_KEYS = {
    "num_hidden_layers": 3, "num_kv_shared_layers": 1, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97}
GEMMA_4 = HEADS | SLIDING | PER_LAYER | {"num_kv_shared_layers": 0, "global_head_dim": 8}
GEMMA_3N = HEADS | PER_LAYER | {"laurel_rank": 4, "altup_num_inputs": 2}
LLAMA_4 = {
    **HEADS, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 16,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
ZAMBA = {"mamba_d_state": 8, "num_key_value_heads": 4}
DBRX = {
    "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
    "ffn_config": {
        "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32,
    },
}  # fmt: skip
