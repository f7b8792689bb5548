"""The attention that transformers models train with: torch's own, matrix products for short rows on
a CPU, or one of the forms for packed rows.

The layout of a packed row is the option `packed_layout` of the model's forward pass. transformers
passes options down to each layer, so no global state is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from art_local.training import flex, packed_attention
from art_local.training.layout import Layout

NAME = "art_training"
SPECIAL = ("softcap", "s_aux", "position_bias")
UNPACKABLE = ("sliding_window", *SPECIAL)
OPTION = "packed_layout"
MAX_SHORT = 384
"""Longer rows are faster with torch's fused CPU kernel, which is built for long rows: at 64 tokens
its forward and backward pass take six times as long as five batched products do, at 256 one and a
half times, at 1,024 two thirds.
"""


class UnpackableError(Exception):
    """The reason why a model's rows cannot be packed; they are then trained as padded rows."""


def use_training_attention(model: Any) -> None:
    """Let a transformers model use this attention; other implementations than `sdpa` are kept."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":  # noqa: SLF001
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def packed_options(model: Any, layout: Layout) -> dict[str, Any]:
    """Return the options of a model's forward pass over a packed row.

    transformers passes an attention mask of four dimensions through; an empty one prevents it from
    creating a dense one.
    """
    used = model.config._attn_implementation  # noqa: SLF001
    if used != NAME:
        if used == "sdpa":
            raise UnpackableError("its code has no replaceable attention")
        raise UnpackableError(f"its attention implementation is {used!r}, not 'sdpa'")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    if other := sorted(kinds - {"full_attention"}):
        raise UnpackableError(f"it has layers of {' and '.join(other)}")
    return {
        "position_ids": layout.positions_S[None],
        "attention_mask": torch.empty(1, 1, 0, 0, device=layout.positions_S.device),
        OPTION: layout,
    }


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packed_layout is not None:
        _check_packable(module, dropout, options)
        return _packed(query, key, value, packed_layout, scale), None
    if attention_mask is not None and attention_mask.numel() == 0:
        raise UnpackableError("its layers do not pass options to their attention")
    rows, length = query.shape[2], key.shape[2]
    plain = attention_mask is None and dropout == 0.0 and rows == length <= MAX_SHORT
    special = any(options.get(name) is not None for name in SPECIAL)
    if plain and not special and query.device.type == "cpu":
        # models may view the output in another shape
        output_BSNE = short_causal_attention(query, key, value, scale).transpose(1, 2)
        return output_BSNE.contiguous(), None
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return output


def _check_packable(module: nn.Module, dropout: float, options: dict[str, Any]) -> None:
    for name in UNPACKABLE:
        if options.get(name) is not None:
            raise UnpackableError(f"its attention has {name!r}")
    if dropout:
        raise UnpackableError(f"its attention has a dropout of {dropout}")
    if not getattr(module, "is_causal", True):
        raise UnpackableError("its attention is not causal")


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Return attention [1, S, N, E] of a packed row, by the fastest form for these tensors."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    if packed_attention.can_attend(query, value):
        return packed_attention.packed_attention(query, key, value, layout, scale)
    if flex.can_attend(query, value):
        return flex.flex_packed(query, key, value, layout, scale)
    return dense_attention(query, key, value, layout, scale)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Return attention of a packed row by a dense mask: on any device, with quadratic cost."""
    groups = query.shape[1] // key.shape[1]
    output = nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=layout.mask_SS,
        scale=scale,
    )
    return output.transpose(1, 2)


def short_causal_attention(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSE: Tensor, scale: float) -> Tensor:
    """Return causal attention [B, N, S, E] as plain matrix products: N query heads over M key heads
    (N a multiple of M), D and E wide.

    Products are taken in the values' dtype, scores and their softmax in fp32. The backward pass
    needs the weights [B, N, S, S], so this is for short rows only.
    """
    q_BNSD, k_BMSD = q_BNSD.to(v_BMSE.dtype), k_BMSD.to(v_BMSE.dtype)
    # autocast would round the scores
    with torch.autocast(v_BMSE.device.type, enabled=False):
        output: Tensor = _ShortCausal.apply(q_BNSD, k_BMSD, v_BMSE, scale)
    return output


class _ShortCausal(torch.autograd.Function):
    """Stacks the query heads that share a key head into one taller product (G = B * M)."""

    @staticmethod
    def forward(ctx: Any, q_BNSD: Tensor, k_BMSD: Tensor, v_BMSE: Tensor, scale: float) -> Tensor:
        B, N, S, D = q_BNSD.shape
        G = B * k_BMSD.shape[1]
        q, k = q_BNSD.reshape(G, -1, D), k_BMSD.reshape(G, S, D)
        v = v_BMSE.reshape(G, S, -1)
        future = torch.full((S, S), -torch.inf, device=q.device).triu_(1)
        scores = torch.bmm(q.float(), k.float().transpose(1, 2)).view(G, -1, S, S)
        p = torch.softmax(scores.mul_(scale).add_(future), -1).to(v.dtype).view(G, -1, S)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale, ctx.shapes = scale, (q_BNSD.shape, k_BMSD.shape, v_BMSE.shape)
        return torch.bmm(p, v).view(B, N, S, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q, k, v, p = ctx.saved_tensors
        dy = grad.reshape(len(q), -1, v.shape[-1])
        dp = torch.bmm(dy, v.transpose(1, 2))
        # softmax's gradient p * (dp - sum(p * dp)), in one kernel
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(ctx.scale)  # noqa: SLF001
        q_shape, k_shape, v_shape = ctx.shapes
        return (
            torch.bmm(ds, k).view(q_shape),
            torch.bmm(ds.transpose(1, 2), q).view(k_shape),
            torch.bmm(p.transpose(1, 2), dy).view(v_shape),
            None,
        )
