"""Low-rank changes B @ A: of one matrix, or of the matrices of stacked experts."""

from __future__ import annotations

import torch
from torch import Tensor


def per_expert(a_RI: Tensor, b_OR: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return A [E, K, I] and B [E, O, K] of each expert; peft stacks A by expert and B by rank."""
    a_EKI = a_RI.reshape(experts, -1, a_RI.shape[-1])
    return a_EKI, b_OR.reshape(b_OR.shape[0], -1, experts).permute(2, 0, 1)


def side_by_side(a_EKI: Tensor, b_EOK: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [E * K, I] and B [O, K * E] as peft stacks them; undoes `per_expert`."""
    return a_EKI.flatten(0, 1).contiguous(), b_EOK.permute(1, 2, 0).flatten(1).contiguous()


def closest(a_EKI: Tensor, b_EOK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of a rank whose product is the closest to B @ A (a truncated SVD), in fp64.

    A matrix that does not change keeps its first rows of A, since nothing could train A = B = 0.
    """
    left_EOQ, r_EQK = torch.linalg.qr(b_EOK.double())
    right_EIQ, s_EQK = torch.linalg.qr(a_EKI.double().mT)
    u, values_EK, v = torch.linalg.svd(r_EQK @ s_EQK.mT, full_matrices=False)
    root = values_EK[:, :rank].sqrt()
    a = root[..., None] * (v[:, :rank] @ right_EIQ.mT)
    b = left_EOQ @ u[..., :rank] * root[:, None]
    a, b = with_rank(a, b, rank)
    return with_rows(a, b, a_EKI.double())


def with_rank(a_EKI: Tensor, b_EOK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B with zeros up to a rank."""
    missing = rank - a_EKI.shape[1]
    pad = torch.nn.functional.pad
    return pad(a_EKI, (0, 0, 0, missing)), pad(b_EOK, (0, missing))


def with_rows(a_EKI: Tensor, b_EOK: Tensor, rows_EKI: Tensor) -> tuple[Tensor, Tensor]:
    """Return A with the given rows where B's column is 0, and B: the product stays the same."""
    count = min(a_EKI.shape[1], rows_EKI.shape[1])
    a_EKI, unused_EK = a_EKI.clone(), (b_EOK == 0).all(1)[:, :count, None]
    a_EKI[:, :count] = torch.where(unused_EK, rows_EKI[:, :count], a_EKI[:, :count])
    return a_EKI, b_EOK
