"""Properties of an architecture for the embedded engine: its state, its cache, its context."""

from __future__ import annotations

import inspect
from typing import Any

from art_core.base.errors import ConfigError

REMEDY = "Choose a decoder (Llama, Qwen, Mistral, Gemma, SmolLM, ...) or another engine."
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
OWN_ATTENTION = frozenset({"falcon", "stablelm"})
"""Models with attention code of their own for which slots were found to be right."""
STATE_KEYS = ("ssm_cfg", "mamba_d_state", "state_size", "attn_layer_indices")
CACHE_PARAMETERS = ("cache", "past_key_values", "cache_params")
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length")
UNLIMITED_CONTEXT = 32768
"""The context of a model that states none: one without positions, as Mamba and BLOOM."""


def check_servable(config: Any) -> None:
    """Raise ConfigError for a model that is not a decoder, or whose log-probs depend on the cuts of
    a text.
    """
    text = config.get_text_config()
    if "indexed_attention" in (getattr(text, "layer_types", None) or ()):
        raise ConfigError(
            f"{text.model_type!r} cannot be served: with its indexed_attention, log-probs of "
            "sampled tokens are not those of the whole text",
            REMEDY,
        )
    if getattr(text, "is_encoder_decoder", False):
        raise ConfigError(
            f"{text.model_type!r} cannot be served: it is one half of an encoder-decoder model",
            REMEDY,
        )


def slots_hold(module: Any) -> bool:
    """Return whether a model's state is keys and values that slots can hold: those of full and
    sliding attention, masked by transformers' own code.
    """
    config = module.config.get_text_config()
    by_interface = getattr(module, "_supports_attention_backend", False)
    masked = by_interface or config.model_type in OWN_ATTENTION
    return (
        masked
        and set(layer_types(config)) <= KNOWN_LAYERS
        and not any(hasattr(config, key) for key in STATE_KEYS)
        and not getattr(config, "num_kv_shared_layers", 0)
        and not getattr(config, "alibi", False)
        and getattr(config, "max_position_embeddings", None) is not None
        and cache_parameter(module) is not None
    )


def layer_types(config: Any) -> list[str]:
    """Return the kinds of attention, layer by layer."""
    types = getattr(config, "layer_types", None)
    if types is None:
        kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        types = [kind] * config.num_hidden_layers
    return list(types)


def cache_parameter(module: Any) -> str | None:
    """Return the parameter by which a model's `forward` takes its cache; None when it takes none.

    It is `cache` from transformers 5.24 on, and `past_key_values` or `cache_params` before.
    """
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in CACHE_PARAMETERS if name in parameters), None)


def context_length(config: Any) -> int:
    """Return how many tokens a sequence of a model may have."""
    stated = (getattr(config, key, None) for key in CONTEXT_KEYS)
    return next((length for length in stated if isinstance(length, int)), UNLIMITED_CONTEXT)
