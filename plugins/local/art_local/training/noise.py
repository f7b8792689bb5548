"""Switch off dropout, so that log-probs depend only on the tokens, as in the engine."""

from __future__ import annotations

import re
from typing import Any

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
