"""The options of one training step, checked before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.rl import options as check
from art_core.rl.advantages import BASELINES, SCALES
from art_core.rl.custom import LossSpec
from art_core.rl.presets import LEVELS, NORMALIZATIONS, PRESETS, LossPreset, loss_preset

LOSS_OPTIONS = (
    "epsilon", "epsilon_high", "importance_sampling_level", "kimi_k2_tau", "mask_prob_ratio",
    "mask_sequence_ratio", "max_negative_advantage_importance_sampling_weight", "normalization",
    "normalization_length", "truncated_importance_sampling",
)  # fmt: skip
"""Options that a loss has or has not; None (of a switch: False) leaves the loss its own value."""


def _scale(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool) and value not in SCALES:
        known = ", ".join(map(repr, SCALES))
        raise ConfigError(f"{attribute.name} must be True or False, or {known}, got {value!r}")


def _field(default: Any, validator: check.Check) -> Any:
    return attrs.field(default=default, validator=validator)


def _optional(validator: check.Check) -> Any:
    return attrs.field(default=None, validator=check.optional(validator))


@attrs.frozen(kw_only=True)
class TrainConfig:
    """Options of `train`; names are those of the ART reference where it has them.

    - `learning_rate`: AdamW's, constant. `max_grad_norm`: clip of the gradient's global norm.
    - `loss_fn`: a preset's name, that of a plugin's loss, or a function's "module:function". Its
      parameters are those of `LossPreset`: `epsilon`, `epsilon_high`, `importance_sampling_level`,
      `kimi_k2_tau`, `mask_prob_ratio`, `mask_sequence_ratio`, `normalization`,
      `normalization_length`, `max_negative_advantage_importance_sampling_weight`,
      `truncated_importance_sampling`. One that the loss does not have is a ConfigError.
    - `advantage_baseline`, `scale_rewards`, `advantage_balance`: see `step_advantages`.
    - `kl_penalty_coef`: advantages lose this times the log-ratio of the policy to a reference, and
      gain its mean; the reference is the base model, or step `kl_penalty_reference_step`.
    - `mask_truncated`: attempts cut off by the token limit teach nothing (DAPO, 2503.14476, 3.4).
    - `grad_accumulation_sequences`: sequences of an optimizer step; by default all are one step.
    - `micro_batch_tokens`: tokens (padding included) in one forward and backward pass; gradients
      add up. By default what suits the backend's device.
    - `packing`: compute a group's shared prompt once; `packed_sequence_length`: tokens of one
      packed micro-batch, by default as `micro_batch_tokens`.
    - `logprob_calculation_chunk_size`: rows of logits [chunk, V] held at once; likewise.
    - `save_checkpoint`: write a checkpoint after the step.
    """

    learning_rate: float = _field(1e-5, check.positive)
    loss_fn: str | LossSpec = attrs.field(default="cispo")
    epsilon: float | None = _optional(check.positive)
    epsilon_high: float | None = _optional(check.positive)
    importance_sampling_level: str | None = _optional(check.one_of(LEVELS))
    kimi_k2_tau: float | None = _optional(check.positive)
    mask_prob_ratio: bool = _field(default=False, validator=check.switch)
    mask_sequence_ratio: float | None = _optional(check.above_one)
    max_negative_advantage_importance_sampling_weight: float | None = _optional(check.positive)
    normalization: str | None = _optional(check.one_of(NORMALIZATIONS))
    normalization_length: int | None = _optional(check.count)
    truncated_importance_sampling: float | None = _optional(check.cap)
    advantage_baseline: str = _field("group_mean", check.one_of(BASELINES))
    scale_rewards: bool | str = attrs.field(default=False, validator=_scale)
    advantage_balance: float = _field(0.0, check.balance)
    kl_penalty_coef: float = _field(0.0, check.not_negative)
    kl_penalty_reference_step: int | None = _optional(check.step)
    mask_truncated: bool = _field(default=True, validator=check.switch)
    max_grad_norm: float = _field(1.0, check.positive)
    grad_accumulation_sequences: int | None = _optional(check.count)
    micro_batch_tokens: int | None = _optional(check.count)
    packing: bool = _field(default=True, validator=check.switch)
    packed_sequence_length: int | None = _optional(check.count)
    logprob_calculation_chunk_size: int | None = _optional(check.count)
    save_checkpoint: bool = _field(default=True, validator=check.switch)

    def __attrs_post_init__(self) -> None:
        preset = loss_preset(self.loss_fn)
        for name in self._given():
            if name not in preset.options:
                raise ConfigError(
                    f"loss {preset.name!r} has no parameter {name!r}; it has: "
                    f"{', '.join(sorted(preset.options))}"
                )
        if self.normalization_length is not None and self.loss.normalization != "constant":
            raise ConfigError(
                "normalization_length is read by normalization='constant' alone, and loss "
                f"{preset.name!r} has {self.loss.normalization!r}",
                "Leave one out, or give both.",
            )
        if self.packed_sequence_length is not None and not self.packing:
            raise ConfigError(
                "packed_sequence_length has no effect with packing=False",
                "Leave one out; micro_batch_tokens bounds rows.",
            )
        if self.kl_penalty_reference_step is not None and not self.kl_penalty_coef:
            raise ConfigError(
                "kl_penalty_reference_step has no effect while kl_penalty_coef is 0",
                "Leave it out, or give kl_penalty_coef=...",
            )

    @classmethod
    def of(cls, losses: Mapping[str, LossSpec] | None = None, /, **options: Any) -> TrainConfig:
        """Build a config from keyword arguments; an unknown one is a ConfigError that names the
        nearest. `losses` (`model.plugins.losses()`) are what plugins offer for `loss_fn`.
        """
        known = [field.name for field in attrs.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(unknown("training option", name, known))
        named = options.get("loss_fn", "cispo")
        if losses and isinstance(named, str) and ":" not in named and named not in PRESETS:
            if named not in losses:
                raise ConfigError(unknown("loss", named, [*PRESETS, *losses]))
            options["loss_fn"] = losses[named]
        return cls(**options)

    @property
    def loss(self) -> LossPreset:
        """The loss with this config's values in it."""
        given = self._given()
        if "truncated_importance_sampling" in given:
            given["ratio_cap"] = given["truncated_importance_sampling"]
        return attrs.evolve(loss_preset(self.loss_fn), **given)

    def _given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in LOSS_OPTIONS}
        return {n: value for n, value in values.items() if value is not None and value is not False}
