"""Named losses as values: what each clips and where the gradient goes. The tensors are a
backend's.
"""

from __future__ import annotations

from typing import Literal

import attrs

from art_core.errors import ConfigError, unknown


@attrs.frozen(kw_only=True)
class LossPreset:
    """A policy-gradient loss over importance ratios r = exp(logp - old_logp), token by token.

    `surrogate="weight"`: -clip(r, 1 - epsilon, 1 + epsilon_high).detach() * A * logp.
    `surrogate="ratio"`: -min(r * A, clip(r, 1 - epsilon, 1 + epsilon_high) * A).
    """

    name: str
    surrogate: Literal["weight", "ratio"]
    epsilon: float
    epsilon_high: float
    source: str


PRESETS = {
    preset.name: preset
    for preset in (
        LossPreset(
            name="cispo",
            surrogate="weight",
            epsilon=1.0,
            epsilon_high=4.0,
            source="CISPO, arXiv 2506.13585, eq. 4; clip values after ScaleRL, 2510.13786",
        ),
        LossPreset(
            name="ppo",
            surrogate="ratio",
            epsilon=0.2,
            epsilon_high=0.28,
            source="PPO, arXiv 1707.06347, eq. 7; clip-higher of DAPO, 2503.14476, eq. 10",
        ),
    )
}


def loss_preset(name: str) -> LossPreset:
    """Return the preset of that name; ConfigError names those that exist."""
    try:
        return PRESETS[name]
    except (KeyError, TypeError):
        raise ConfigError(unknown("loss", name, PRESETS)) from None
