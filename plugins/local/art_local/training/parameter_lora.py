"""LoRA of a parameter that is not a linear layer's: the stacked matrices of a mixture of experts.

peft's ParamWrapper holds A and B of all experts; here the module computes with the merged
parameter, the one that is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from art_local.training.low_rank import per_expert


def is_parameter_lora(layer: Any) -> bool:
    """Return whether a LoRA layer changes a parameter instead of a linear layer."""
    return type(layer).__name__ == "ParamWrapper"


def parameter_delta(layer: Any, a_KI: Tensor, b_OK: Tensor) -> Tensor:
    """Return B @ A in the parameter's shape; A and B of all experts are stacked in peft's order."""
    experts = layer.num_experts
    if experts == 1:
        return b_OK @ a_KI
    a_EKI, b_EOK = per_expert(a_KI, b_OK, experts)
    delta_EOI = b_EOK @ a_EKI
    return delta_EOI if _is_out_by_in(layer) else delta_EOI.transpose(1, 2)


def _is_out_by_in(layer: Any) -> bool:
    # peft before 0.19 takes all stacked parameters for [experts, in, out]
    return bool(getattr(layer, "_did_swap_in_out_features", False))


def merged_parameter_forward(layer: Any, *inputs: Any, **options: Any) -> Any:
    """Run a module with its parameter replaced by the merged one; the gradient goes to A and B."""
    if layer.disable_adapters:
        return layer.base_layer(*inputs, **options)
    if layer.merged_weight is None:
        return type(layer).forward(layer, *inputs, **options)
    (adapter,) = layer.lora_A
    weight = _MergedParameter.apply(
        layer.lora_A[adapter].weight,
        layer.lora_B[adapter].weight,
        layer.merged_weight,
        layer,
        layer.scaling[adapter],
    )
    with _replaced(layer.get_base_layer(), layer.parameter_name, weight):
        return layer.base_layer(*inputs, **options)


@contextmanager
def _replaced(module: nn.Module, name: str, weight: Tensor) -> Iterator[None]:
    """Let a module find a tensor in place of its parameter inside the block."""
    own = module._parameters.pop(name)  # noqa: SLF001
    module.__dict__[name] = weight
    try:
        yield
    finally:
        del module.__dict__[name]
        module._parameters[name] = own  # noqa: SLF001


class _MergedParameter(torch.autograd.Function):
    """W' = W + s B A, computed before; dA = s B^T dW, dB = s dW A^T, for each expert."""

    @staticmethod
    def forward(
        ctx: Any, a_KI: Tensor, b_OK: Tensor, merged: Tensor, layer: Any, scale: float
    ) -> Tensor:
        ctx.save_for_backward(a_KI, b_OK)
        ctx.layer, ctx.scale = layer, scale
        return merged.view_as(merged)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a_KI, b_OK = ctx.saved_tensors
        with torch.enable_grad():
            factors = a_KI.detach().requires_grad_(), b_OK.detach().requires_grad_()
            delta = parameter_delta(ctx.layer, *factors)
        da_KI, db_OK = torch.autograd.grad(delta, factors, dw.to(delta.dtype) * ctx.scale)
        return da_KI, db_OK, None, None, None
