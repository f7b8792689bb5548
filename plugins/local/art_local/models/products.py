"""Matrix products of fp32 on a CPU by oneDNN, which torch has beside MKL.

torch computes them with MKL, which takes a slow path on AMD: on a Zen 5 core oneDNN is 2 to 2.4
times as fast. bf16 already runs on oneDNN. Sizes decide which library computes, and time does not:
the same shapes give the same bits.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.autograd.function import once_differentiable  # noqa: TID253

log = logging.getLogger("art_local")
MIN_MULTIPLICATIONS = 2**21
"""A smaller product takes longer in oneDNN, which prepares each one, than in MKL."""

Operation = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class FastLinear(nn.Linear):
    """A linear layer whose products are `linear`'s."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's outputs [..., O] of inputs [..., I]."""
        return linear(input, self.weight, self.bias)


PLAIN_LINEAR = (nn.Linear, FastLinear)
"""The types of a linear layer that only multiplies by its weight and adds its bias."""


def use_fast_products(module: nn.Module) -> None:
    """Compute a module's plain linear layers by `linear`; their parameters and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FastLinear


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, with the gradients of those that need one."""
    inputs = (x, weight_OI, bias_O)
    if not (_is_plain_fp32(inputs) and _is_large(x, weight_OI) and _onednn()):
        return nn.functional.linear(x, weight_OI, bias_O)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        output: Tensor = _Linear.apply(*inputs)
        return output
    return product(x, weight_OI, bias_O)


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias without gradients, in the dtype of its inputs.

    `weight` may be a transposed view: neither library copies it.
    """
    if _is_plain_fp32((x, weight_OI, bias_O)) and _is_large(x, weight_OI) and (op := _onednn()):
        return op(x, weight_OI, bias_O)
    return nn.functional.linear(x, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    """Gradients only where they are needed: none on the weight of a frozen layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(
            x if ctx.needs_input_grad[1] else None, weight_OI if ctx.needs_input_grad[0] else None
        )
        ctx.shape = x.shape
        return product(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        dy_NO = dy.reshape(-1, dy.shape[-1])
        dx = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            dx = product(dy_NO, weight_OI.t()).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            dweight_OI = product(dy_NO.t(), x.reshape(-1, x.shape[-1]).t())
        if ctx.needs_input_grad[2]:
            dbias_O = dy_NO.sum(0)
        return dx, dweight_OI, dbias_O


def _is_plain_fp32(tensors: tuple[Tensor | None, ...]) -> bool:
    return not torch.is_autocast_enabled("cpu") and all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors
    )


def _is_large(x: Tensor, weight_OI: Tensor) -> bool:
    return x.numel() * weight_OI.shape[0] >= MIN_MULTIPLICATIONS


@functools.cache
def _onednn() -> Operation | None:
    """Return oneDNN's linear product; None, with a line in the log, where this torch has none."""
    try:
        op = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        with torch.device("cpu"):
            found_RO = _call(op, torch.ones(3, 4), torch.full((2, 4), 0.5), torch.ones(2))
        if not bool((found_RO == 3).all()):
            raise RuntimeError(f"1 + 4 * 0.5 is {found_RO}")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        log.info(
            "torch's own matrix products are used, which are slower on AMD: this torch has no "
            "oneDNN product that works here (%s: %s)",
            type(error).__name__,
            " ".join(str(error).split())[:200],
        )
        return None
    return functools.partial(_call, op)


def _call(op: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    output: Tensor = op(x, weight_OI, bias_O, "none", [], "")
    return output
