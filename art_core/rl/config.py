"""The options of one training step, checked before anything is spent."""

from __future__ import annotations

import math
from typing import Any

import attrs

from art_core.errors import ConfigError, unknown
from art_core.rl.presets import LossPreset, loss_preset


def _positive(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{attribute.name} must be a finite number above 0, got {value!r}")


def _optional_count(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{attribute.name} must be a whole number of at least 1, got {value!r}")


def _balance(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise ConfigError(f"{attribute.name} must lie in [-1, 1], got {value!r}")


def _switch(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{attribute.name} must be True or False, got {value!r}")


def _optional_positive(owner: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        _positive(owner, attribute, value)


@attrs.frozen(kw_only=True)
class TrainConfig:
    """Options of `train`; names are those of the ART reference where it has them.

    - `learning_rate`: AdamW's, constant.
    - `loss_fn`: a preset's name; `epsilon` and `epsilon_high` replace its clip values.
    - `scale_rewards`: divide advantages by the group's std; `advantage_balance`: see
      `group_advantages`.
    - `mask_truncated`: attempts cut off by the token limit teach nothing (DAPO, 2503.14476, 3.4).
    - `max_grad_norm`: clip of the gradient's global norm.
    - `micro_batch_tokens`: tokens (padding included) in one forward and backward pass; gradients
      add up. By default what suits the backend's device.
    - `logprob_calculation_chunk_size`: rows of logits [chunk, V] held at once; likewise.
    - `save_checkpoint`: write a checkpoint after the step.
    """

    learning_rate: float = attrs.field(default=1e-5, validator=_positive)
    loss_fn: str = attrs.field(default="cispo")
    epsilon: float | None = attrs.field(default=None, validator=_optional_positive)
    epsilon_high: float | None = attrs.field(default=None, validator=_optional_positive)
    scale_rewards: bool = attrs.field(default=False, validator=_switch)
    advantage_balance: float = attrs.field(default=0.0, validator=_balance)
    mask_truncated: bool = attrs.field(default=True, validator=_switch)
    max_grad_norm: float = attrs.field(default=1.0, validator=_positive)
    micro_batch_tokens: int | None = attrs.field(default=None, validator=_optional_count)
    logprob_calculation_chunk_size: int | None = attrs.field(
        default=None, validator=_optional_count
    )
    save_checkpoint: bool = attrs.field(default=True, validator=_switch)

    @loss_fn.validator
    def _known_loss(self, _: attrs.Attribute[str], value: str) -> None:
        loss_preset(value)

    @classmethod
    def of(cls, **options: Any) -> TrainConfig:
        """Build a config from keyword arguments; an unknown one is a ConfigError that names the
        nearest.
        """
        known = [field.name for field in attrs.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(unknown("training option", name, known))
        return cls(**options)

    @property
    def loss(self) -> LossPreset:
        """The loss preset with this config's clip values in it."""
        preset = loss_preset(self.loss_fn)
        return attrs.evolve(
            preset,
            epsilon=preset.epsilon if self.epsilon is None else self.epsilon,
            epsilon_high=preset.epsilon_high if self.epsilon_high is None else self.epsilon_high,
        )
