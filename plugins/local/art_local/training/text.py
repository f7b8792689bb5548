"""The text model of a causal language model with other parts, such as a vision tower."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_part(model: Any) -> str | None:
    """Return the name of the text model inside a multimodal one; None for a text model."""
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    names = [name for name, module in model.named_modules() if module is decoder]
    return names[0] if names and names[0] else None


def freeze_other_parts(model: nn.Module, text: str) -> None:
    """Freeze all parameters except those of the text model and its embeddings."""
    other: Any = model
    trained = {id(p) for p in model.get_submodule(text).parameters()}
    for embeddings in (other.get_input_embeddings(), other.get_output_embeddings()):
        trained.update(id(p) for p in embeddings.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
