"""Tiny random models that read images, with their processors, for tests that take seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from art_local.testing.tiny import SPECIAL_TOKENS, byte_tokenizer

FIRST = 256 + len(SPECIAL_TOKENS)
PARTS = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ 'IMAGE' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""A chat template that reads lists of parts only, as SmolVLM's and LLaVA's do."""
TEXTS_TOO = PARTS.replace(
    "{%- for part in message['content'] -%}",
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}",
).replace("{%- endfor -%}{{ '<|im_end|>", "{%- endfor -%}{%- endif -%}{{ '<|im_end|>")
"""One that reads texts, too, as Qwen's do."""
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": 258,
}  # fmt: skip
EYES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def save_tiny_vision_model(
    directory: Path | str, kind: str = "idefics3", *, seed: int = 0, context_length: int = 1024
) -> Path:
    """Write a random model of one of `KINDS` or `REFUSED` (0.2 M parameters, fp32) with a byte
    tokenizer and its processor. Equal seeds give equal weights.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    directory = Path(directory)
    config, tokenizer, processor = {**KINDS, **REFUSED}[kind](context_length)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and not name.endswith(
                ("lm_head.weight", "embed_tokens.weight")
            ):
                parameter.mul_(4)  # answers of fresh weights hardly depend on the image
    model.generation_config.eos_token_id = TEXT["eos_token_id"]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


Made = tuple[Any, Any, Any]


def _tokenizer(template: str, image: str, *others: str) -> Any:
    tokenizer = byte_tokenizer(image, *others)
    tokenizer.chat_template = template.replace("IMAGE", image)
    return tokenizer


def _text(model_type: str, length: int, tokenizer: Any, **options: Any) -> dict[str, Any]:
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": length}
    return {"model_type": model_type, **TEXT, **sizes, **options}


def _llava(length: int) -> Made:
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaProcessor

    tokenizer = _tokenizer(PARTS, "<image>")
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **EYES},
        text_config=_text("llama", length, tokenizer),
        image_token_index=FIRST,
    )
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return config, tokenizer, processor


def _idefics3(length: int) -> Made:
    from transformers import Idefics3Config, Idefics3ImageProcessorPil, Idefics3Processor

    others = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    grid = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    tokenizer = _tokenizer(PARTS, "<image>", *others, *grid)
    config = Idefics3Config(
        vision_config=EYES,
        text_config=_text("llama", length, tokenizer),
        image_token_id=FIRST,
        scale_factor=1,
        pad_token_id=256,
    )
    pixels = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    processor = Idefics3Processor(
        pixels, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
    )
    return config, tokenizer, processor


def _smolvlm(length: int) -> Made:
    from transformers import SmolVLMConfig, SmolVLMImageProcessorPil

    known, tokenizer, processor = _idefics3(length)
    config = SmolVLMConfig(
        vision_config=EYES,
        text_config=known.text_config,
        image_token_id=FIRST,
        scale_factor=1,
        pad_token_id=256,
    )
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    processor.image_processor = SmolVLMImageProcessorPil(**sizes)
    return config, tokenizer, processor


def _qwen2_5_vl(length: int) -> Made:
    from transformers import Qwen2_5_VLConfig, Qwen2VLImageProcessorPil

    template = TEXTS_TOO.replace("IMAGE", "<|vision_start|>IMAGE<|vision_end|>")
    others = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer(template, "<|image_pad|>", *others)
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "patch_size": 14, "out_hidden_size": 64, "spatial_merge_size": 2,
        },
        text_config=_text("qwen2_5_vl_text", length, tokenizer, rope_parameters=rotary),
        image_token_id=FIRST,
        video_token_id=FIRST + 1,
        vision_start_token_id=FIRST + 2,
        vision_end_token_id=FIRST + 3,
    )  # fmt: skip
    pixels = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=16 * 28 * 28
    )
    # the whole processor has one of videos, too, which needs torchvision
    return config, tokenizer, pixels


def _qwen3_vl(length: int) -> Made:
    from transformers import Qwen3VLConfig

    known, tokenizer, pixels = _qwen2_5_vl(length)
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = _text("qwen3_vl_text", length, tokenizer, rope_parameters=rotary, head_dim=16)
    eyes = known.vision_config.to_dict() | {"model_type": "qwen3_vl", "num_position_embeddings": 16}
    named = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLConfig(
        vision_config=eyes | {"deepstack_visual_indexes": [0]},
        text_config=text,
        **{name: getattr(known, name) for name in named},
    )
    return config, tokenizer, pixels


KINDS: Mapping[str, Callable[[int], Made]] = {
    "idefics3": _idefics3,
    "llava": _llava,
    "qwen2_5_vl": _qwen2_5_vl,
    "smolvlm": _smolvlm,
}
REFUSED: Mapping[str, Callable[[int], Made]] = {"qwen3_vl": _qwen3_vl}
"""Models that add what their vision towers see to hidden states, too."""
