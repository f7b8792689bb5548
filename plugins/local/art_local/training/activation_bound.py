"""More bytes than a plain decoder's layers keep of a token, from the sizes of their weights.

It is found at once, where `blueprint.py` takes a second to count. Models with other layers are
counted.
"""

from __future__ import annotations

from torch import nn

from art_local.training.attention import MAX_SHORT, NAME
from art_local.training.policy import Policy

WIDE = 4
"""Bytes of fp32, in which norms compute also in a bf16 model."""
COPIES = 3
"""Each input and output of a linear layer counts this often; Llama keeps about one of each."""
RESIDUALS = 12
"""Tensors as wide as the hidden state that norms, rotary positions and sums keep in a layer."""


def bytes_per_token(policy: Policy) -> int | None:
    """Return more bytes than a forward pass keeps for each token, without the output head.

    None for a model whose layers have other weights than matrices and norms, or whose attention may
    keep a square of the tokens.
    """
    config = policy.base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    heads = getattr(config, "num_attention_heads", None)
    attends_as_ours = policy.base.config._attn_implementation == NAME  # noqa: SLF001
    if (
        not isinstance(heads, int)
        or not attends_as_ours
        or kinds != {"full_attention"}
        or _has_window(config)
    ):
        return None
    widths = [_width(layer) for layer in policy.checkpointing.layers]
    known = [width for width in widths if width is not None]
    if not widths or len(known) < len(widths):
        return None
    scores = 2 * MAX_SHORT * heads
    values = COPIES * sum(known) + len(widths) * (RESIDUALS * int(config.hidden_size) + scores)
    return WIDE * values


def _has_window(config: object) -> bool:
    names = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping")
    return any(getattr(config, name, None) for name in names)


def _width(layer: nn.Module) -> int | None:
    """Return the inputs and outputs of a layer's matrices together; None for other weights."""
    total = 0
    for name, parameter in layer.named_parameters():
        if ".lora_" in name:
            continue
        if parameter.ndim > 2:
            return None
        total += sum(parameter.shape)
    return total
