"""Activation checkpointing: the backward pass computes each layer again from the layer's input.

Without it a forward pass keeps every intermediate result of every layer until the backward pass.
With it a layer keeps only its input: far less memory, for a third to a half more time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from art_core.base.errors import ConfigError
from art_local.options import AUTO

Mode = bool | str
OPTION = "activation_checkpointing"


class Checkpointing:
    """Switches activation checkpointing of a model's decoder layers on and off.

    `mode` is the user's option. `on` is whether passes with gradients compute layers again; with
    the mode "auto" the trainer sets it before each step. Log-probs and gradients do not depend on
    it: a model draws nothing at random here.
    """

    def __init__(self, body: nn.Module, mode: Mode = AUTO) -> None:
        self.mode = mode
        self.on = mode is True
        self._ran_out = False
        self.layers = [] if mode is False else list(decoder_layers(body))
        if self.on and not self.layers:
            raise ConfigError(
                f"{type(body).__name__} has no decoder layers that could be computed again",
                f"Leave {OPTION} out.",
            )
        for layer in self.layers:
            layer.forward = partial(self._forward, layer.forward)

    @property
    def can_choose(self) -> bool:
        """Whether the option leaves the choice to the trainer."""
        return self.mode == AUTO and bool(self.layers)

    def choose(self, *, on: bool) -> None:
        """Set it for the next step. Where memory ran out without it once, it stays on."""
        if self.can_choose:
            self.on = on or self._ran_out

    def switch_on(self) -> bool:
        """Switch it on after memory ran out, if the option allows; return whether it was off."""
        if self.on or not self.can_choose:
            return False
        self.on = self._ran_out = True
        return True

    def _forward(self, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if not (self.on and torch.is_grad_enabled()):
            return forward(*args, **options)
        return checkpoint(
            partial(forward, **options), *args, use_reentrant=False, preserve_rng_state=False
        )


def decoder_layers(body: nn.Module) -> Iterator[Any]:
    """Yield the layers of a transformers model that may be checkpointed, none inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for child in body.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from decoder_layers(child)
