"""Products with weights in the layout that this machine multiplies fastest: oneDNN's packed one.

torch computes fp32 products on a CPU by MKL, which reads a weight at a third of the memory's speed
for few rows, and does not use AVX-512 on every CPU. oneDNN, which torch contains as well, packs a
weight once and computes products with any number of rows from it.
"""

from __future__ import annotations

import logging
from functools import cache

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from art_core.base.errors import ConfigError

log = logging.getLogger("art_local")

ROWS = 8
"""The number of rows that a weight is packed for: measured from 1 to 1024 rows, the layout for 8 is
within 10 % of the best for each.
"""


@attrs.frozen(eq=False)
class Product:
    """A linear layer without its module: torch's own product with a weight as it is.

    The results of all methods are new tensors [N, O]; inputs are [N, I].
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Return x @ weight.T + bias."""
        return functional.linear(x_NI, self.weight, self.bias)

    def plus(self, x_NI: Tensor, other_NO: Tensor) -> Tensor:
        """Return the product + other."""
        return self(x_NI).add_(other_NO)


class PackedProduct(Product):
    """oneDNN's product with a packed weight."""

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Return x @ weight.T + bias."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            x_NI, self.weight, self.bias, "none", [], ""
        )
        return found

    def plus(self, x_NI: Tensor, other_NO: Tensor) -> Tensor:
        """Return the product + other."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(  # noqa: SLF001
            x_NI, other_NO, self.weight, self.bias, "add"
        )
        return found


@attrs.frozen(eq=False)
class Int8Product(Product):
    """A product of bf16 inputs with a weight of 8-bit integers, which reads a quarter of fp32's
    memory; output o is scaled by `scale_O`.
    """

    scale_O: Tensor

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Return x @ weight.T + bias, in the dtype of x."""
        found: Tensor = torch.ops.aten._weight_int8pack_mm(  # noqa: SLF001
            x_NI.bfloat16(), self.weight, self.scale_O
        )
        found = found.to(x_NI.dtype)
        return found if self.bias is None else found.add_(self.bias)


def product(weight_OI: Tensor, bias_O: Tensor | None = None) -> Product:
    """Return a product with a weight: packed where oneDNN can, else with the weight as it is."""
    if not can_pack(weight_OI.device.type, weight_OI.dtype):
        return Product(weight_OI, bias_O)
    return PackedProduct(_packed(weight_OI), bias_O)


def int8_product(weight_OI: Tensor, bias_O: Tensor | None = None) -> Product:
    """Return a product with a weight that is rounded to 8 bits, with one scale for each output:
    its largest absolute value is 127. ConfigError where torch has no such product.
    """
    weight = weight_OI.detach().float()
    scale_O1 = weight.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(127)
    rounded = weight.div(scale_O1).round_().to(torch.int8)
    found = Int8Product(rounded, bias_O, scale_O1[:, 0].bfloat16())
    try:
        found(weight_OI.new_zeros(1, weight_OI.shape[1]))
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"engine_weights='int8': this torch does not multiply with 8-bit weights: {reason}",
            "Leave engine_weights out.",
        ) from None
    return found


@cache
def can_pack(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether oneDNN packs weights of a dtype and multiplies with them rightly; a CPU on
    which it does not gets one log line.
    """
    if device_type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        reason = _fault(dtype)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
    if reason:
        log.warning("sampling uses torch's own products, because oneDNN's fail here: %s", reason)
    return not reason


def _fault(dtype: torch.dtype) -> str | None:
    """Return what is wrong with a small packed product; None when it is right."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return "this CPU does not multiply bf16"
    weight_OI = torch.linspace(-1, 1, 32 * 16).reshape(32, 16).to(dtype)
    x_NI = torch.linspace(-1, 1, 3 * 16).reshape(3, 16).to(dtype)
    packed = PackedProduct(_packed(weight_OI), None)
    expected = functional.linear(x_NI, weight_OI)
    found = (packed(x_NI), packed.plus(x_NI, expected))
    for ours, theirs in zip(found, (expected, expected + expected), strict=True):
        if not torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.05):
            return "a packed product has wrong values"
    return None


def _packed(weight_OI: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001
        weight_OI.detach().contiguous(), ROWS
    )
    return found
