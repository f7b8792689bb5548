"""The weights that LoRA changes: linear layers, and experts that are stacked parameters."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import attrs
from torch import nn

from art_local.training.text import text_part

log = logging.getLogger("art_local")
LAYER_NUMBER = re.compile(r"^.*?\.\d+\.")
EXPERT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of experts' linear layers in older models. In a model with stacked experts peft takes
layers of these names for experts, so others are named by their weights.
"""


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

    A warning names the stacked experts that stay as they are.
    """
    text = text_part(model)
    excluded = None if text is None else rf"(?!{re.escape(text)}\.).*"
    stacked = sorted({_without_number(name) for name in stacked_experts(model)})
    if not stacked:
        return Targets(modules="all-linear", excluded=excluded)
    if not experts:
        log.warning(
            "the experts of %s stay as they are (%s): LoRA changes its other linear layers. "
            "Use engine='transformers' to train the experts, too.",
            type(model).__name__,
            ", ".join(stacked),
        )
    linear = list(_linear_layers(model))
    named = [name for name in linear if _leaf(name) in EXPERT_NAMES]
    parameters = {f"{_without_number(name)}.weight" for name in named}
    return Targets(
        modules=sorted({_leaf(name) for name in linear} - EXPERT_NAMES),
        parameters=sorted(parameters.union(stacked if experts else ())) or None,
        excluded=excluded,
    )


def stacked_experts(model: nn.Module) -> Iterator[str]:
    """Yield the names of parameters that hold one matrix for each expert."""
    for name, module in model.named_modules():
        if "expert" not in f"{name} {type(module).__name__}".lower():
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3 and parameter.shape[0] > 1:
                yield f"{name}.{parameter_name}"


def _linear_layers(model: Any) -> Iterator[str]:
    from transformers.pytorch_utils import Conv1D

    head, text = model.get_output_embeddings(), text_part(model)
    for name, module in model.named_modules():
        inside = text is None or name.startswith(f"{text}.")
        # a router may be a linear layer that returns more than a product
        if inside and type(module) in (nn.Linear, Conv1D) and module is not head:
            yield name


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _without_number(name: str) -> str:
    """Return what follows the layer's number in a name."""
    return LAYER_NUMBER.sub("", name)
