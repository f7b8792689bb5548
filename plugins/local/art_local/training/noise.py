"""Keep randomness out: no dropout, as in the engine, and global random states that stay."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

_DROPS = re.compile(r"dropout|layerdrop|drop_(prob|path)")


def without_noise(model: Any, *, training_mode: bool = False) -> Any:
    """Return the model in eval mode, in which layers draw no random numbers; gradients still flow.

    With `training_mode` its layers stay in training mode, which some need to recompute activations,
    and their dropout probabilities are set to 0. The config is not changed.
    """
    if not training_mode:
        return model.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and _DROPS.search(name):
                setattr(module, name, 0.0)
    return model.train()


def preserved_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global random states after the block: the CPU's and this device's. Those of
    other CUDA devices are left alone, since saving them would initialize each device.
    """
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
