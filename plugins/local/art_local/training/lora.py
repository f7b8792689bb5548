"""LoRA whose forward pass runs on merged weights: W + scale * B @ A, one product a layer.

The merged weights are computed once a step and are the very tensors that the engine serves, so
trainer and engine agree on the policy, and the adapter costs nothing in the forward pass. The
backward pass needs A and B only in four thin products. Adapters are peft's, and so is their format
on disk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from art_local.models.load import PLAIN, Loader, silence_logs
from art_local.models.products import PLAIN_LINEAR, linear, product
from art_local.training.noise import preserved_random_state
from art_local.training.parameter_lora import (
    is_parameter_lora,
    merged_parameter_forward,
    parameter_delta,
)
from art_local.training.targets import (
    expert_matrices,
    lora_targets,
    stacked_experts,
    warn_of_unreached,
)

ADAPTER = "default"
PREFIX = "base_model.model."


def add_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: int,
    generator: torch.Generator,
    loader: Loader = PLAIN,
    experts: bool = True,
) -> Any:
    """Return a peft model with fp32 LoRA on all linear layers but the output head and, with
    `experts`, on stacked experts.

    A is drawn from the CPU `generator` as peft draws it, B is 0; the global RNG stays as it was.
    """
    from peft import LoraConfig

    targets = lora_targets(model, experts=experts)
    matrices, reachable = expert_matrices(model), list(stacked_experts(model))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets.modules,
        target_parameters=targets.parameters,
        exclude_modules=targets.excluded,
        task_type="CAUSAL_LM",
    )
    device = next(model.parameters()).device
    with silence_logs(), preserved_random_state(device):
        peft_model: Any = loader.lora(model, config)
    layers = lora_layers(peft_model)
    warn_of_unreached(model, [name for name in matrices if name not in layers], reachable)
    for layer in layers.values():
        a_KI, b_OK = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        drawn_KI = torch.empty(a_KI.shape)
        nn.init.kaiming_uniform_(drawn_KI, a=math.sqrt(5), generator=generator)
        a_KI.data, b_OK.data = drawn_KI.to(a_KI.device), b_OK.data.float()
        if not loader.merges:
            continue
        if is_parameter_lora(layer):
            layer.merged_weight = None
            layer.forward = MethodType(merged_parameter_forward, layer)
        elif _is_plain(layer):
            layer.forward = MethodType(_merged_forward, layer)
    return peft_model


def adapter_on_cpu(model: nn.Module, generator: torch.Generator) -> None:
    """Give an adapter over a base without values, on the meta device, the values that `add_lora`
    draws.
    """
    for layer in lora_layers(model).values():
        for factors, draws in ((layer.lora_A, True), (layer.lora_B, False)):
            values = torch.zeros(factors[ADAPTER].weight.shape)
            if draws:
                nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            factors[ADAPTER].weight = nn.Parameter(values)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers that carry LoRA, by the name of the base parameter that they change."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{_base_name(name)}.{getattr(layer, 'parameter_name', 'weight')}": layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A
    }


def _base_name(name: str) -> str:
    """Return a LoRA layer's name in the base model; layers of several parameters are nested."""
    parts = name.removeprefix(PREFIX).split(".")
    return ".".join(part for part in parts if part != "base_layer")


@torch.no_grad()
def merged_tensors(
    model: nn.Module, state: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return W + scale * B @ A by base parameter name, summed in fp32, in the base's dtype.

    A and B are the model's, or those of `state` (peft's names on disk). The tensors are new at each
    call, or the frozen base's own: those handed out before keep the step that they were made for.
    """
    merged = {}
    stems = {id(layer): name for name, layer in model.named_modules()}
    for salt, (name, layer) in enumerate(lora_layers(model).items()):
        base_OI = _base_weight(layer)
        a_KI, b_OK = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if state is not None:
            stem = stems[id(layer)]
            a_KI, b_OK = (
                state[f"{stem}.{f}.weight"].to(base_OI.device) for f in ("lora_A", "lora_B")
            )
        if not base_OI.is_meta and not bool(b_OK.any()):
            merged[name] = base_OI.detach()  # an adapter that has not learned yet
            continue
        factors = a_KI.float(), b_OK.float()
        whole_OI = _whole(layer, base_OI.float(), *factors, layer.scaling[ADAPTER])
        merged[name] = dithered(whole_OI, base_OI.dtype, salt)
    return merged


def _base_weight(layer: Any) -> Tensor:
    weight: Tensor = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
    return weight


def _whole(layer: Any, base_OI: Tensor, a_KI: Tensor, b_OK: Tensor, scale: float) -> Tensor:
    if is_parameter_lora(layer):
        return torch.add(base_OI, parameter_delta(layer, a_KI, b_OK), alpha=scale)
    if layer.fan_in_fan_out:
        return torch.addmm(base_OI, a_KI.T, b_OK.T, alpha=scale)
    return torch.addmm(base_OI, b_OK, a_KI, alpha=scale)


@torch.no_grad()
def use_merged(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Run the forward pass on these merged weights until the next call."""
    for name, layer in lora_layers(model).items():
        if is_parameter_lora(layer):
            layer.merged_weight = tensors[name]
        elif _is_plain(layer):
            layer.merged_weight = tensors[name]
            factors = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            layer.factors = [f.detach().to(tensors[name].dtype) for f in factors]


def use_factors(model: nn.Module) -> None:
    """Run the forward pass on W, A and B apart, as an engine does that is given adapters."""
    for layer in lora_layers(model).values():
        layer.merged_weight = None


@torch.no_grad()
def dithered(weight: Tensor, dtype: torch.dtype, salt: int = 0) -> Tensor:
    """Round fp32 weights to bf16 so that small changes survive on average; other dtypes are just
    cast.

    Base weights lie exactly on the bf16 grid, so rounding to nearest would drop every change below
    half a grid step: a whole run at a small learning rate. A fixed offset inside the grid step, its
    own for each weight, makes a change of x steps show in a share x of the weights. An unchanged
    weight stays.
    """
    if dtype != torch.bfloat16:
        return weight.to(dtype)
    flat = weight.contiguous().view(torch.int32).view(-1)
    noise = _noise(weight.device)
    shift = salt * 7919 % len(noise)
    out = flat.clone()
    for start in range(0, len(flat), len(noise) - shift):
        part = out[start : start + len(noise) - shift]
        part += noise[shift : shift + len(part)]
    out.bitwise_and_(-65536)
    return out.view(torch.float32).view(weight.shape).to(dtype)


@functools.cache
def _noise(device: torch.device) -> Tensor:
    # a prime length: the pattern never lines up with the rows of a matrix
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 1 << 16, (1_048_573,), generator=generator, dtype=torch.int32).to(
        device
    )


def _is_plain(layer: Any) -> bool:
    """Return whether a LoRA layer is only W + scale * B @ A; others keep peft's own
    forward.
    """
    from peft.tuners.lora.layer import Linear

    return (
        type(layer) is Linear
        and type(layer.get_base_layer()) in PLAIN_LINEAR
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_variant.get(ADAPTER)
        and layer.lora_A[ADAPTER].bias is None
        and layer.lora_B[ADAPTER].bias is None
    )


def _merged_forward(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters:
        return linear(x, base.weight, base.bias)
    if layer.merged_weight is None:
        return _factored(layer, x)
    output: Tensor = _MergedLinear.apply(
        x,
        layer.lora_A[ADAPTER].weight,
        layer.lora_B[ADAPTER].weight,
        layer.merged_weight,
        base.bias,
        layer.factors,
        layer.scaling[ADAPTER],
    )
    return output


def _factored(layer: Any, x: Tensor) -> Tensor:
    """Y = x W^T + s (x A^T) B^T, all in the dtype of x: what vLLM computes."""
    base = layer.get_base_layer()
    a_KI, b_OK = (f[ADAPTER].weight.to(x.dtype) for f in (layer.lora_A, layer.lora_B))
    update: Tensor = linear(linear(x, a_KI), b_OK) * layer.scaling[ADAPTER]
    return linear(x, base.weight, base.bias) + update


class _MergedLinear(torch.autograd.Function):
    """y = x W'^T with W' = W + s B A; dA = s (dy B)^T x, dB = s dy^T (x A^T), dx = dy W'.

    I inputs, O outputs, K the rank. A and B enter in fp32, to receive the gradients; `factors` are
    their copies in the dtype of W'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _a_KI: Tensor,
        _b_OK: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        factors: tuple[Tensor, Tensor],
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_OI, *factors)
        ctx.scale = scale
        return product(x, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight_OI, a_KI, b_OK = ctx.saved_tensors
        dy_NO, x_NI = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = product(dy_NO, weight_OI.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        da_KI = product(product(dy_NO, b_OK.t()).t(), x_NI.t())
        # a product with few columns is slow, one with few rows is not
        db_KO = product(product(x_NI, a_KI).t(), dy_NO.t())
        scaled = da_KI.float() * ctx.scale, db_KO.t().float() * ctx.scale
        return dx, *scaled, None, None, None, None
