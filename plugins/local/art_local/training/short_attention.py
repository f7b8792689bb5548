"""Causal attention for short rows on a CPU, as plain matrix products.

torch's fused CPU kernel is built for long rows: at 64 tokens its forward and backward pass take six
times as long as five batched products do, at 256 one and a half times, at 1,024 two thirds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST = 384
"""Longer rows are faster with torch's kernel."""


def short_causal_attention(q_BNSD: Tensor, k_BMSD: Tensor, v_BMSE: Tensor, scale: float) -> Tensor:
    """Causal attention [B, N, S, E]: N query heads over M key heads (N a multiple of M), D and E
    wide.

    Scores and their softmax are fp32. The weights [B, N, S, S] are kept for the backward pass: for
    short rows only.
    """
    output: Tensor = _ShortCausal.apply(q_BNSD, k_BMSD, v_BMSE, scale)
    return output


class _ShortCausal(torch.autograd.Function):
    """The query heads that share a key head are stacked into one taller product (G = B * M)."""

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
