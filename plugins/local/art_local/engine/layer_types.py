"""The layers that the embedded engine can run: attention with keys and values of its own."""

from __future__ import annotations

from typing import Any

from art_core.base.errors import ConfigError

REMEDY = "Choose a plain decoder (Llama, Qwen, Mistral, Gemma, SmolLM, ...) or another engine."
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})


def check_servable(config: Any) -> None:
    """Raise ConfigError for a model whose state is more than keys and values of attention."""
    layer_types(config.get_text_config())


def layer_types(config: Any) -> list[str]:
    """Return the kinds of attention, layer by layer; ConfigError for layers of another kind."""
    types = getattr(config, "layer_types", None)
    if types is None:
        kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        types = [kind] * config.num_hidden_layers
    other = sorted(set(types) - KNOWN_LAYERS)
    stateful = [
        key
        for key in ("ssm_cfg", "mamba_d_state", "state_size", "attn_layer_indices")
        if hasattr(config, key)
    ]
    if (
        other
        or stateful
        or getattr(config, "is_encoder_decoder", False)
        or getattr(config, "num_kv_shared_layers", 0)
    ):
        raise ConfigError(
            f"the embedded engine cannot run {config.model_type!r}: it keeps more than attention "
            f"keys and values ({', '.join(other + stateful) or 'shared or encoder states'})",
            REMEDY,
        )
    if getattr(config, "max_position_embeddings", None) is None:
        raise ConfigError(
            f"the embedded engine cannot run {config.model_type!r}: it states no context length "
            "(max_position_embeddings), so it may count positions in a way of its own",
            REMEDY,
        )
    return list(types)
