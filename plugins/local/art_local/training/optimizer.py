"""AdamW whose state is a flat dict of tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from art_core.base.errors import BackendError

BETAS = (0.9, 0.99)
MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = (*MOMENTS, "step")


class Optimizer:
    """AdamW (0.9, 0.99) over named parameters, its state readable and settable by parameter
    name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._adamw = torch.optim.AdamW(
            self._parameters.values(), lr=0.0, betas=BETAS, weight_decay=0.0
        )

    def step(self, learning_rate: float, max_grad_norm: float) -> float:
        """Clip the gradient's global norm, take a step, drop the gradients; return the norm before
        clipping.

        Raises BackendError for a gradient that is not finite; the weights stay as they were.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), max_grad_norm))
        try:
            if not torch.isfinite(torch.tensor(norm)):
                raise BackendError(
                    f"the gradient's norm is {norm}; the weights stay as they were",
                    "Lower learning_rate, or look for log-probs that are not finite in "
                    "the last rollouts.",
                )
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate
            self._adamw.step()
        finally:
            self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Forget gradients accumulated so far."""
        self._adamw.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """Return the moments by name, not copied."""
        return {
            f"{kind}.{name}": self._adamw.state[parameter][kind]
            for name, parameter in self._parameters.items()
            if parameter in self._adamw.state
            for kind in MOMENTS
        }

    def state(self) -> dict[str, Tensor]:
        """Return the state as `<kind>.<parameter>` tensors; empty before the first step."""
        return {
            f"{kind}.{name}": self._adamw.state[parameter][kind].detach().cpu()
            for name, parameter in self._parameters.items()
            if parameter in self._adamw.state
            for kind in STATE
        }

    def load(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Set the state; an empty one starts afresh. BackendError when names or shapes do not
        fit.
        """
        self._adamw.state.clear()
        if not tensors:
            return
        wanted = {f"{kind}.{name}" for name in self._parameters for kind in STATE}
        odd = sorted(wanted ^ set(tensors)) or [
            f"{kind}.{name}"
            for name, parameter in self._parameters.items()
            for kind in MOMENTS
            if tensors[f"{kind}.{name}"].shape != parameter.shape
        ]
        if odd:
            raise BackendError(
                f"the optimizer state in {source} is not that of this model: {len(odd)} "
                "tensors differ, "
                f"{odd[0]!r} first",
                "Use the options of that run, or another model name.",
            )
        for name, parameter in self._parameters.items():
            self._adamw.state[parameter] = {
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device),
                "step": tensors[f"step.{name}"],
            }
