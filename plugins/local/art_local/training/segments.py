"""Segments of a packed row between their places in it and the batched products of attention."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from art_local.training.layout import Block


@attrs.frozen(kw_only=True)
class Heads:
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
        """[n, L, M, D] -> [n, N, L, D], each key head as often as it is attended to."""
        return x_nLMD.transpose(1, 2).repeat_interleave(self.query // self.key, 1)

    def summed(self, x_nNLD: Tensor) -> Tensor:
        """[n, N, L, D] -> [n, L, M, D], the sum over those repetitions."""
        n, _, length, width = x_nNLD.shape
        return x_nNLD.reshape(n, self.key, -1, length, width).sum(2).transpose(1, 2)


def take(x_SHD: Tensor, block: Block) -> Tensor:
    """Return a block's segments [n, L, H, D]; a padded place repeats its segment's first."""
    size = block.count * block.length
    if block.start is not None:
        flat = x_SHD[block.start : block.start + size]
    else:
        flat = x_SHD.index_select(0, block.index)
    return flat.view(block.count, block.length, *x_SHD.shape[1:])


def put(into_SHD: Tensor, x_nLHD: Tensor, block: Block) -> None:
    """Write a block's segments to their places; what stands in padding is left out."""
    flat = x_nLHD.reshape(-1, *into_SHD.shape[1:])
    if block.start is not None:
        into_SHD[block.start : block.start + len(flat)] = flat
        return
    index = block.index
    if block.kept is not None:
        index, flat = index[block.kept], flat[block.kept]
    into_SHD.index_copy_(0, index, flat)


def without_padding(x_nLHD: Tensor, block: Block) -> Tensor:
    """Return a block's segments with 0 in padding."""
    if block.kept is None:
        return x_nLHD
    flat = x_nLHD.flatten(0, 1)
    return torch.zeros_like(flat).index_copy_(0, block.kept, flat[block.kept]).view(x_nLHD.shape)
