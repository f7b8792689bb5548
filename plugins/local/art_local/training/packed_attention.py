"""Attention of a packed row on a CPU, with time and memory proportional to its tokens.

A query attends to its own segment, causally, and to its pack's prefix. Segments of about equal
length are batched; all queries after a prefix are one tall product with its keys. The two parts are
joined exactly by the logarithms of their softmax denominators; the backward pass computes the
weights again from the joint logarithm.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from art_local.training.layout import Block, Layout

MAX_SHORT = 64
"""Segments up to this length use batched matrix products; longer ones use torch's fused kernel,
which skips what causal attention does not see: at 256 tokens it takes 0.73 of the time, at 45 it
takes 1.1 times as long.
"""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


def can_attend(q_BNSD: Tensor, v_BMSE: Tensor) -> bool:
    """Return whether these tensors are supported: on a CPU, values as wide as keys."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    return (
        q_BNSD.device.type == "cpu"
        and v_BMSE.dtype in dtypes
        and q_BNSD.shape[-1] == v_BMSE.shape[-1]
    )


def packed_attention(
    q_BNSD: Tensor, k_BMSD: Tensor, v_BMSD: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Return attention [1, S, N, D] of one packed row (B = 1): N query heads over M key heads (N a
    multiple of M).

    Products are computed in the values' dtype, scores and their softmax in fp32.
    """
    dtype = v_BMSD.dtype
    rows = [x[0].transpose(0, 1).to(dtype).contiguous() for x in (q_BNSD, k_BMSD, v_BMSD)]
    # autocast would round the fp32 scores
    with torch.autocast(v_BMSD.device.type, enabled=False):
        output: Tensor = _Packed.apply(*rows, layout, scale)
    return output[None]


@attrs.frozen(eq=False)
class _Rows:
    """Queries [..., N, D] with keys and values [..., M, D]."""

    q: Tensor
    k: Tensor
    v: Tensor


@attrs.frozen(eq=False)
class _Joint:
    """Values of queries over all their keys: the gradient of the outputs and the outputs
    [..., N, D], the logarithms of the softmax denominators and sum(gradient * output) [..., N, 1].
    """

    grad: Tensor
    out: Tensor
    lse: Tensor
    delta: Tensor


@attrs.frozen(kw_only=True)
class _Heads:
    """N query heads over M key heads with the scale of their scores; between rows [n, L, H, D] and
    the batched products of attention.
    """

    query: int
    key: int
    scale: float

    def stacked(self, x_nLHD: Tensor) -> Tensor:
        """[n, L, H, D] -> [n * M, H/M * L, D]: query heads that share a key head in one product."""
        n, length, heads, width = x_nLHD.shape
        each = x_nLHD.view(n, length, self.key, heads // self.key, width)
        return each.permute(0, 2, 3, 1, 4).reshape(n * self.key, -1, width)

    def unstacked(self, x: Tensor, length: int, heads: int) -> Tensor:
        """Undo `stacked`."""
        each = x.view(-1, self.key, heads // self.key, length, x.shape[-1])
        return each.permute(0, 3, 1, 2, 4).reshape(-1, length, heads, x.shape[-1])

    def repeated(self, x_nLMD: Tensor) -> Tensor:
        """[n, L, M, D] -> [n, N, L, D], each key head repeated for its query heads."""
        return x_nLMD.transpose(1, 2).repeat_interleave(self.query // self.key, 1)

    def summed(self, x_nNLD: Tensor) -> Tensor:
        """[n, N, L, D] -> [n, L, M, D], the sum over those repetitions."""
        n, _, length, width = x_nNLD.shape
        return x_nNLD.reshape(n, self.key, -1, length, width).sum(2).transpose(1, 2)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_SND: Tensor, k_SMD: Tensor, v_SMD: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        heads = _Heads(query=q_SND.shape[1], key=k_SMD.shape[1], scale=scale)
        out_SND = torch.empty_like(q_SND)
        lse_SN1 = q_SND.new_empty(*q_SND.shape[:2], 1, dtype=_wide(q_SND))
        weights: list[Tensor] = []
        for block in layout.blocks:
            rows = _Rows(*(_take(x, block) for x in (q_SND, k_SMD, v_SMD)))
            inside = _short if block.length <= MAX_SHORT else _long
            out, lse, *saved = inside(rows, heads)
            _put(out_SND, out, block)
            _put(lse_SN1, lse, block)
            weights += saved
        for start, stop, first, last in layout.shared:
            onto = _Rows(q_SND[first:last], k_SMD[start:stop], v_SMD[start:stop])
            _join(out_SND[first:last], lse_SN1[first:last], *_onto_prefix(onto, heads))
        ctx.save_for_backward(q_SND, k_SMD, v_SMD, out_SND, lse_SN1, *weights)
        ctx.layout, ctx.heads = layout, heads
        return out_SND

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_SND, k_SMD, v_SMD, out_SND, lse_SN1, *saved = ctx.saved_tensors
        heads, weights = ctx.heads, iter(saved)
        grad_SND = grad.to(q_SND.dtype).contiguous()
        delta_SN1 = (grad_SND.to(lse_SN1.dtype) * out_SND).sum(-1, keepdim=True)
        dq_SND, dk_SMD, dv_SMD = (torch.empty_like(x) for x in (q_SND, k_SMD, v_SMD))
        for block in ctx.layout.blocks:
            rows = _Rows(*(_take(x, block) for x in (q_SND, k_SMD, v_SMD)))
            joint = _Joint(
                _without_padding(_take(grad_SND, block), block),
                _take(out_SND, block),
                _take(lse_SN1, block),
                _without_padding(_take(delta_SN1, block), block),
            )
            if block.length <= MAX_SHORT:
                parts = _short_backward(rows, joint, next(weights), next(weights), heads)
            else:
                parts = _long_backward(rows, joint, heads)
            for into, part in zip((dq_SND, dk_SMD, dv_SMD), parts, strict=True):
                _put(into, part, block)
        for start, stop, first, last in ctx.layout.shared:
            onto = _Rows(q_SND[first:last], k_SMD[start:stop], v_SMD[start:stop])
            joint = _Joint(*(x[first:last] for x in (grad_SND, out_SND, lse_SN1, delta_SN1)))
            dq, dk, dv = _prefix_backward(onto, joint, heads)
            dq_SND[first:last] += dq
            dk_SMD[start:stop] += dk
            dv_SMD[start:stop] += dv
        return dq_SND, dk_SMD, dv_SMD, None, None


def _short(rows: _Rows, heads: _Heads) -> tuple[Tensor, ...]:
    """Return outputs [n, L, N, D], logarithms of the denominators [n, L, N, 1], and for the
    backward pass the weights with those logarithms, stacked.
    """
    length = rows.q.shape[1]
    q, k, v = (heads.stacked(x) for x in (rows.q, rows.k, rows.v))
    wide = _wide(q)
    future = torch.full((length, length), -torch.inf, dtype=wide).triu_(1)
    scores = torch.bmm(q.to(wide), k.to(wide).transpose(1, 2)).mul_(heads.scale)
    scores.view(len(q), -1, length, length).add_(future)
    lse = scores.logsumexp(-1, keepdim=True)
    p = scores.sub_(lse).exp_().to(v.dtype)
    out, lse_rows = (heads.unstacked(x, length, heads.query) for x in (torch.bmm(p, v), lse))
    return out, lse_rows, p, lse


def _short_backward(
    rows: _Rows, joint: _Joint, p: Tensor, own_lse: Tensor, heads: _Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """The joint weights are those inside the segment times exp(its logarithm - the joint one)."""
    length = rows.q.shape[1]
    q, k, v = (heads.stacked(x) for x in (rows.q, rows.k, rows.v))
    share = (own_lse - heads.stacked(joint.lse)).exp_()
    dy = heads.stacked(joint.grad) * share.to(q.dtype)
    delta = (heads.stacked(joint.delta) * share).to(q.dtype)
    ds = torch.bmm(dy, v.transpose(1, 2)).sub_(delta).mul_(p).mul_(heads.scale)
    return (
        heads.unstacked(torch.bmm(ds, k), length, heads.query),
        heads.unstacked(torch.bmm(ds.transpose(1, 2), q), length, heads.key),
        heads.unstacked(torch.bmm(p.transpose(1, 2), dy), length, heads.key),
    )


def _long(rows: _Rows, heads: _Heads) -> tuple[Tensor, ...]:
    k, v = heads.repeated(rows.k), heads.repeated(rows.v)
    out, lse = _forward(rows.q.transpose(1, 2), k, v, is_causal=True, scale=heads.scale)
    return out.transpose(1, 2), lse.transpose(1, 2)[..., None]


def _long_backward(rows: _Rows, joint: _Joint, heads: _Heads) -> tuple[Tensor, Tensor, Tensor]:
    k, v = heads.repeated(rows.k), heads.repeated(rows.v)
    q, dy, y = (x.transpose(1, 2) for x in (rows.q, joint.grad, joint.out))
    lse = joint.lse[..., 0].transpose(1, 2).contiguous()
    dq, dk, dv = _backward(dy, q, k, v, y, lse, dropout_p=0.0, is_causal=True, scale=heads.scale)
    return dq.transpose(1, 2), heads.summed(dk), heads.summed(dv)


def _onto_prefix(rows: _Rows, heads: _Heads) -> tuple[Tensor, Tensor]:
    """Return outputs [T, N, D] over only the prefix, and logarithms of the denominators
    [T, N, 1].
    """
    q, k, v = (heads.stacked(x[None])[None] for x in (rows.q, rows.k, rows.v))
    found = _forward(q, k, v, is_causal=False, scale=heads.scale)
    out, lse = (
        heads.unstacked(x, len(rows.q), heads.query)[0]
        for x in (found[0][0], found[1][0, ..., None])
    )
    return out, lse


def _prefix_backward(rows: _Rows, joint: _Joint, heads: _Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Given the joint outputs and denominators, the kernel's gradients are the joint ones."""
    q, k, v, dy, y, lse = (
        heads.stacked(x[None])[None]
        for x in (rows.q, rows.k, rows.v, joint.grad, joint.out, joint.lse)
    )
    dq, dk, dv = _backward(
        dy, q, k, v, y, lse[..., 0], dropout_p=0.0, is_causal=False, scale=heads.scale
    )
    return (
        heads.unstacked(dq[0], len(rows.q), heads.query)[0],
        heads.unstacked(dk[0], len(rows.k), heads.key)[0],
        heads.unstacked(dv[0], len(rows.k), heads.key)[0],
    )


def _join(out_TND: Tensor, lse_TN1: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Join a second part of the keys into outputs and logarithms, in place."""
    share = torch.sigmoid(other_lse - lse_TN1)
    wide = share.dtype
    out_TND.copy_(torch.lerp(out_TND.to(wide), other.to(wide), share))
    lse_TN1.copy_(torch.logaddexp(lse_TN1, other_lse))


def _take(x_SHD: Tensor, block: Block) -> Tensor:
    """Return a block's segments [n, L, H, D]; padding repeats its segment's first place."""
    size = block.count * block.length
    if block.start is not None:
        flat = x_SHD[block.start : block.start + size]
    else:
        flat = x_SHD.index_select(0, block.index)
    return flat.view(block.count, block.length, *x_SHD.shape[1:])


def _put(into_SHD: Tensor, x_nLHD: Tensor, block: Block) -> None:
    """Write a block's segments to their places, without padding."""
    flat = x_nLHD.reshape(-1, *into_SHD.shape[1:])
    if block.start is not None:
        into_SHD[block.start : block.start + len(flat)] = flat
        return
    index = block.index
    if block.real is not None:
        index, flat = index[block.real], flat[block.real]
    into_SHD.index_copy_(0, index, flat)


def _without_padding(x_nLHD: Tensor, block: Block) -> Tensor:
    """Return a block's segments with zeros as padding."""
    if block.real is None:
        return x_nLHD
    flat = x_nLHD.flatten(0, 1)
    return torch.zeros_like(flat).index_copy_(0, block.real, flat[block.real]).view(x_nLHD.shape)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
