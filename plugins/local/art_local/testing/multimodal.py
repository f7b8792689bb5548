"""Tiny random models that read images, too; their text model is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_local.testing.family_options import (
    GEMMA_4,
    HEADS,
    LINEAR,
    LLAMA_4,
    MOE,
    SIZES,
    SLIDING,
    Family,
)

EYES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", **EYES}
SIGLIP = {"model_type": "siglip_vision_model", **EYES}
QWEN_EYES = {
    "depth": 1, "embed_dim": 16, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
    "patch_size": 14, "out_hidden_size": 32, "spatial_merge_size": 2,
}  # fmt: skip
DEEP_EYES = QWEN_EYES | {"deepstack_visual_indexes": [0]}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
IMAGES = {
    "image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}  # fmt: skip
GLM_IMAGES = {
    "image_token_id": 90, "video_token_id": 91, "image_start_token_id": 92,
    "image_end_token_id": 93, "video_start_token_id": 94, "video_end_token_id": 95,
}  # fmt: skip


def _text(model_type: str | None = None, /, **options: Any) -> dict[str, Any]:
    named = {} if model_type is None else {"model_type": model_type}
    return {"text_config": {**named, **SIZES, **options}}


MULTIMODAL: Mapping[str, Family] = {
    "Gemma 3, with vision": (
        "Gemma3",
        _text(**HEADS, **SLIDING)
        | {"vision_config": EYES, "mm_tokens_per_image": 4, "image_token_index": 90},
    ),
    "Gemma 4, with vision": ("Gemma4", _text(**GEMMA_4) | {"vision_config": EYES}),
    "Mistral Small 3.1": (
        "Mistral3",
        _text("mistral", sliding_window=None, **HEADS)
        | {"vision_config": {"model_type": "pixtral", **EYES}, "image_token_index": 90},
    ),
    "LLaVA": ("Llava", _text("llama") | {"vision_config": CLIP, "image_token_index": 90}),
    "LLaVA-NeXT": (
        "LlavaNext",
        _text("mistral", sliding_window=None) | {"vision_config": CLIP, "image_token_index": 90},
    ),
    "Qwen2-VL": (
        "Qwen2VL",
        _text(**MROPE) | IMAGES | {"vision_config": QWEN_EYES | {"hidden_size": 32}},
    ),
    "Qwen2.5-VL": ("Qwen2_5_VL", _text(**MROPE) | IMAGES | {"vision_config": QWEN_EYES}),
    "Qwen3-VL": ("Qwen3VL", _text(**HEADS, **MROPE) | IMAGES | {"vision_config": DEEP_EYES}),
    "Qwen3-VL MoE": (
        "Qwen3VLMoe",
        _text(**HEADS, **MOE, **MROPE) | IMAGES | {"vision_config": DEEP_EYES},
    ),
    "Qwen3.5, with vision": (
        "Qwen3_5",
        _text(**HEADS, **LINEAR) | IMAGES | {"vision_config": QWEN_EYES},
    ),
    "InternVL": (
        "InternVL",
        _text("qwen2")
        | {
            "vision_config": {
                "model_type": "internvl_vision",
                **EYES,
                "image_size": [28, 28],
                "patch_size": [14, 14],
            },
            "image_token_id": 90,
        },
    ),
    "Idefics 3": ("Idefics3", _text("llama") | {"vision_config": EYES, "image_token_id": 90}),
    "SmolVLM": ("SmolVLM", _text("llama") | {"vision_config": EYES, "image_token_id": 90}),
    "GLM-4.1V": ("Glm4v", _text(**MROPE) | GLM_IMAGES | {"vision_config": QWEN_EYES}),
    "Aya Vision": (
        "AyaVision",
        _text("cohere2", **SLIDING) | {"vision_config": SIGLIP, "image_token_index": 90},
    ),
    "Cohere 2, with vision": (
        "Cohere2Vision",
        _text("cohere2", **SLIDING) | {"vision_config": SIGLIP, "image_token_id": 90},
    ),
    "Llama 4, with vision": (
        "Llama4",
        _text(**LLAMA_4)
        | {
            "vision_config": {
                **EYES,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
            "image_token_index": 90,
        },
    ),
    "Ovis 2": ("Ovis2", _text("qwen2") | {"vision_config": EYES, "image_token_id": 90}),
    "PaliGemma": (
        "PaliGemma",
        _text("gemma", **HEADS)
        | {"vision_config": SIGLIP, "image_token_index": 90, "projection_dim": 32},
    ),
}
