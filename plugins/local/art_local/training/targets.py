"""The weights that LoRA changes: linear layers, and experts that are stacked parameters."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import attrs
from torch import nn

from art_local.models.products import PLAIN_LINEAR
from art_local.training.text import text_part

log = logging.getLogger("art_local")
LAYER_NUMBER = re.compile(r"^.*?\.\d+\.")
EXPERT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of experts' linear layers in older models. In a model with stacked experts peft takes
layers of these names for experts, so others are named by their weights.
"""
LOCAL_ENGINE = "the backend 'local' with engine='transformers' and one trainer device"
ROUTERS = frozenset({"gate", "router"})
MAMBA_TYPES = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
"""Models whose kernels read the weight of `out_proj` past LoRA, so that peft refuses it."""


@attrs.frozen(kw_only=True)
class Targets:
    """What a LoraConfig names: modules and parameters, by the ends of their names. `excluded` is a
    regular expression for modules that stay as they are.
    """

    modules: str | list[str]
    parameters: list[str] | None = None
    excluded: str | None = None


def lora_targets(model: nn.Module, *, experts: bool) -> Targets:
    """Return the targets of LoRA: all linear layers but the output head and, with `experts`,
    stacked experts.

    Experts that stay as they are, and other layers that LoRA cannot change, are in a warning.
    """
    text = text_part(model)
    outside = [] if text is None else [rf"(?!{re.escape(text)}\.).*"]
    left = _left_out(model)
    skipped = "|".join([*outside, *map(re.escape, left)]) or None
    linear = [name for name in _linear_layers(model) if name not in left]
    stacked = sorted({_without_number(name) for name in stacked_experts(model)})
    if not stacked:
        return Targets(modules="all-linear", excluded=skipped)
    named = [name for name in linear if _leaf(name) in EXPERT_NAMES]
    parameters = {f"{_without_number(name)}.weight" for name in named}
    return Targets(
        modules=sorted({_leaf(name) for name in linear} - EXPERT_NAMES),
        parameters=sorted(parameters.union(stacked if experts else ())) or None,
        excluded=skipped,
    )


def warn_of_unreached(model: Any, missed: Collection[str], reachable: Collection[str]) -> None:
    """Name in one warning the matrices of experts that LoRA does not change; those that are
    `reachable` it could change.
    """
    if not missed or _has_no_values(model):
        return
    log.warning(
        "the experts of %s stay as they are (%s): LoRA changes its other linear layers. "
        "Use %s to train the experts, too.",
        type(model).__name__,
        ", ".join(sorted({_without_number(name) for name in missed})),
        LOCAL_ENGINE if set(missed) <= set(reachable) else "full_finetune=True",
    )


def expert_matrices(model: nn.Module) -> list[str]:
    """Return the names of all parameters that hold experts' matrices, whatever their layout."""
    return [
        f"{name}.{parameter_name}"
        for name, module in _expert_modules(model)
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and "bias" not in parameter_name
    ]


def stacked_experts(model: nn.Module) -> Iterator[str]:
    """Yield the names of parameters that hold one matrix for each expert."""
    for name, module in _expert_modules(model):
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and parameter.shape[0] > 1:
                yield f"{name}.{parameter_name}"


def _expert_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the text model's modules that hold experts, by their names and classes."""
    text = text_part(model)
    for name, module in model.named_modules():
        inside = text is None or name.startswith(f"{text}.")
        if inside and "expert" in f"{name} {type(module).__name__}".lower():
            yield name, module


def _left_out(model: Any) -> list[str]:
    """Return the linear layers that LoRA cannot change, and log a warning."""
    linear = list(_linear_layers(model))
    by_kernels = []
    if model.config.get_text_config().model_type in MAMBA_TYPES:
        by_kernels = [name for name in linear if _leaf(name) == "out_proj"]
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    shared = [name for name in linear if owners[id(modules[name].weight)] > 1]
    unusual = []
    if any(True for _ in stacked_experts(model)):  # peft's "all-linear" reaches them elsewhere
        unusual = [name for name in _unusual_linear_layers(model) if _leaf(name) not in ROUTERS]
    for names, reason in (
        (by_kernels, "kernels read their weights past an adapter"),
        (shared, "layers share their weights"),
        (unusual, "they compute more than a product with their weight"),
    ):
        if names and not _has_no_values(model):
            log.warning(
                "LoRA leaves some layers of %s as they are (%s): %s. Its other linear layers are "
                "trained.",
                type(model).__name__,
                ", ".join(sorted({_without_number(name) for name in names})),
                reason,
            )
    return by_kernels + shared


def _has_no_values(model: nn.Module) -> bool:
    """Return whether a model is a mere plan of one that is warned about itself."""
    return next(model.parameters()).is_meta


def _linear_layers(model: Any) -> Iterator[str]:
    from transformers.pytorch_utils import Conv1D

    head, text = model.get_output_embeddings(), text_part(model)
    for name, module in model.named_modules():
        inside = text is None or name.startswith(f"{text}.")
        # a router may be a linear layer that returns more than a product
        if inside and type(module) in (*PLAIN_LINEAR, Conv1D) and module is not head:
            yield name


def _unusual_linear_layers(model: Any) -> Iterator[str]:
    head, text = model.get_output_embeddings(), text_part(model)
    for name, module in model.named_modules():
        inside = text is None or name.startswith(f"{text}.")
        special = isinstance(module, nn.Linear) and type(module) not in PLAIN_LINEAR
        if inside and special and module is not head:
            yield name


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _without_number(name: str) -> str:
    """Return what follows the layer's number in a name."""
    return LAYER_NUMBER.sub("", name)
