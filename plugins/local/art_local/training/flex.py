"""Attention of a packed row on CUDA: FlexAttention with a block-sparse mask.

Empty blocks of the mask cost nothing, so the cost is proportional to the tokens
(torch.nn.attention.flex_attention; "Flex Attention", arXiv 2412.05496).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from art_local.training.layout import Layout

NOTE = "flex"
LITTLE_SHARED_MEMORY = ((8, 6), (8, 9))
"""GPUs like the RTX 3090 and 4090, A10, L4 and L40S have 99 KiB per block of threads. For bf16
heads of 128, torch's default of three stages needs 101 KiB, two stages 67 (pytorch issue 133254).
"""


def can_attend(q_BNSD: Tensor, v_BMSE: Tensor) -> bool:
    """Return whether the compiled kernel supports these tensors: CUDA since Ampere, with Triton,
    heads of 16 to 256.
    """
    device = q_BNSD.device
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and v_BMSE.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(16 <= width <= 256 for width in (q_BNSD.shape[-1], v_BMSE.shape[-1]))
        and _has_triton()
    )


def mask_mod(layout: Layout) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the layout's mask as FlexAttention wants it: (batch, head, query, key) -> bool."""
    segments_S, prefixes_S = layout.segments_S, layout.prefixes_S

    def attends(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        segment = segments_S[key]
        own = (segments_S[query] == segment) | (prefixes_S[query] == segment)
        return own & (key <= query)

    return attends


def block_mask(layout: Layout, *, compiled: bool) -> Any:
    """Return the layout's BlockMask, computed once for all layers."""
    from torch.nn.attention.flex_attention import create_block_mask

    if NOTE not in layout.notes:
        size, device = len(layout.positions_S), layout.positions_S.device
        make: Any = _compiled("create_block_mask") if compiled else create_block_mask
        with torch.no_grad():
            layout.notes[NOTE] = make(mask_mod(layout), None, None, size, size, device=str(device))
    return layout.notes[NOTE]


def flex_packed(
    q_BNSD: Tensor,
    k_BMSD: Tensor,
    v_BMSE: Tensor,
    layout: Layout,
    scale: float,
    *,
    compiled: bool = True,
) -> Tensor:
    """Return attention [1, S, N, E] of one packed row (B = 1); `compiled=False` uses plain
    operations, for tests without a CUDA device.
    """
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = _compiled("flex_attention") if compiled else flex_attention
    output = attend(
        q_BNSD.contiguous(),
        k_BMSD.contiguous(),
        v_BMSE.contiguous(),
        block_mask=block_mask(layout, compiled=compiled),
        scale=scale,
        enable_gqa=q_BNSD.shape[1] != k_BMSD.shape[1],
        kernel_options=kernel_options(q_BNSD) if compiled else None,
    )
    return output.transpose(1, 2)


def kernel_options(q_BNSD: Tensor) -> dict[str, int] | None:
    """Return FlexAttention's options for these queries; None uses its defaults. Wider heads use
    them, too: their backward kernel does not fit either way.
    """
    little = torch.cuda.get_device_capability(q_BNSD.device) in LITTLE_SHARED_MEMORY
    fits = q_BNSD.shape[-1] * q_BNSD.itemsize <= 256
    return {"fwd_num_stages": 2} if little and fits else None


@functools.cache
def _compiled(name: str) -> Callable[..., Any]:
    from torch.nn.attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(getattr(flex_attention, name), dynamic=True)
    return compiled


@functools.cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())
