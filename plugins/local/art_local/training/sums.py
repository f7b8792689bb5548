"""The sums of a step over its micro-batches, and the metrics that they give."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from art_core.rl.losses import LossPreset
from art_local.training.losses import TokenLosses, ratio_metrics


@attrs.frozen(kw_only=True, eq=False)
class Sums:
    """What micro-batches add up to: weighted loss, and entropies [N] and losses of all tokens."""

    loss: list[Tensor] = attrs.field(factory=list)
    entropies: list[Tensor] = attrs.field(factory=list)
    tokens: list[TokenLosses] = attrs.field(factory=list)

    def add(self, window: Sums) -> None:
        """Take in what the micro-batches of one optimizer step add up to."""
        self.loss.append(torch.stack(window.loss).sum())
        self.entropies.extend(window.entropies)
        self.tokens.extend(window.tokens)

    def measured(self, loss: LossPreset) -> dict[str, float]:
        """Return the metrics of the step."""
        return {
            "loss/train": float(torch.stack(self.loss).mean()),
            "loss/entropy": float(torch.cat(self.entropies).mean()),
            **({} if loss.surrogate == "likelihood" else ratio_metrics(self.tokens)),
        }
