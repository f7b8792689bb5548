"""The options of a training step, and the checks of an option's value, also of a backend's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.base.numbers import price_of
from art_core.rl.advantages import BASELINES, SCALES, AdvantageSpec, advantage_spec
from art_core.rl.losses import LEVELS, NORMALIZATIONS, PRESETS, LossPreset, LossSpec, loss_preset

Check = Callable[[str, Any], None]
"""Takes an option's name and value; raises ConfigError for a value that does not fit."""


def check_options(check: Check, **options: Any) -> None:
    """Raise ConfigError for the first option whose value the check does not take."""
    for name, value in options.items():
        check(name, value)


def _must(text: str, fits: Callable[[Any], bool]) -> Check:
    def check(name: str, value: Any) -> None:
        if not fits(value):
            raise ConfigError(f"{name} must {text}, got {value!r}")

    return check


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float))


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int)


positive = _must("be a finite number above 0", lambda v: _is_number(v) and 0 < v < math.inf)
not_negative = _must(
    "be a finite number of at least 0", lambda v: _is_number(v) and 0 <= v < math.inf
)
cap = _must("be a number above 0 (math.inf for none)", lambda v: _is_number(v) and v > 0)
above_one = _must("be a finite number above 1", lambda v: _is_number(v) and 1 < v < math.inf)
count = _must("be a whole number of at least 1", lambda v: _is_whole(v) and v >= 1)
whole = _must("be a whole number", _is_whole)
step = _must("be a step, 0 or more", lambda v: _is_whole(v) and v >= 0)
share = _must("be a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)
balance = _must("lie in [-1, 1]", lambda v: _is_number(v) and -1 <= v <= 1)
switch = _must("be True or False", lambda v: isinstance(v, bool))
scale = _must(
    f"be True or False, or {', '.join(map(repr, SCALES))}",
    lambda v: isinstance(v, bool) or v in SCALES,
)


def weights(name: str, value: Any) -> None:
    """Take a mapping from names to finite numbers, with at least one that is not 0."""
    finite = isinstance(value, Mapping) and all(
        isinstance(key, str) and _is_number(v) and math.isfinite(v) for key, v in value.items()
    )
    if not finite or not any(value.values()):
        raise ConfigError(
            f"{name} must map the names of metrics to finite weights, not all of them 0, "
            f"got {value!r:.80}"
        )


def scales(name: str, value: Any) -> None:
    """Take a mapping from names to what `scale` takes."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must map names of rewards to their scales, got {value!r:.80}")
    for key, each in value.items():
        scale(f"{name}[{key!r}]", each)


def rate(name: str, value: Any) -> None:
    """Take a finite number above 0; the error for a schedule names what takes one."""
    if callable(value):
        raise ConfigError(
            f"{name} of one step is a number, got {value!r:.80}",
            "model.train takes a schedule or a function, and finds the rate of its step.",
        )
    positive(name, value)


def price(name: str, value: Any) -> None:
    """Take a price: a finite number of any kind, of at least 0."""
    price_of(name, value)


def optional(check: Check) -> Check:
    """Take None, or what `check` takes."""

    def checked(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return checked


def one_of(known: Iterable[str]) -> Check:
    """Take one of these names."""
    names = tuple(known)

    def checked(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in names:
            raise ConfigError(unknown(name, value, names))

    return checked


OPTIMIZERS = ("adamw", "adamw_8bit", "muon")

LOSS_OPTIONS = (
    "distill_coef", "epsilon", "epsilon_high", "importance_sampling_level", "kimi_k2_tau",
    "mask_prob_ratio", "mask_sequence_ratio", "max_negative_advantage_importance_sampling_weight",
    "normalization", "normalization_length", "truncated_importance_sampling",
)  # fmt: skip
"""Options that a loss has or has not; None (of a switch: False) leaves the loss its own value."""


REPLACED = ("advantage_baseline", "scale_rewards", "discount", "reward_weights", "reward_scales")
"""Options that an advantage function takes the place of."""
DEFAULT = {"scale_rewards": False, "discount": 1.0}
OF_CRITIC = ("gae_lambda", "gae_gamma", "value_learning_rate", "value_clip")


def _field(check: Check, *, default: Any = None) -> Any:
    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        check(attribute.name, value)

    return attrs.field(default=default, validator=validate)


def _optional(check: Check) -> Any:
    return _field(optional(check))


@attrs.frozen(kw_only=True)
class TrainConfig:
    """Options of `train`; names are those of the ART reference where it has them.

    - `learning_rate`: of this step; `model.train` also takes a `Schedule`.
    - `max_grad_norm`: clip of the gradient's global norm.
    - `optimizer`: "adamw"; "adamw_8bit", with moments of 8 bits; "muon", which trains the weight
      matrices of a whole model and leaves the rest to AdamW. `weight_decay`: decoupled, of all
      trained parameters.
    - `entropy_coef`: the loss loses this times the mean entropy of the policy; with
      `entropy_target`, in nats, only in steps whose sampled tokens have less.
    - `loss_fn`: a preset's name, that of a plugin's loss, or a function's "module:function". Its
      parameters are those of `LossPreset`: `epsilon`, `epsilon_high`, `importance_sampling_level`,
      `kimi_k2_tau`, `mask_prob_ratio`, `mask_sequence_ratio`, `normalization`,
      `normalization_length`, `max_negative_advantage_importance_sampling_weight`,
      `truncated_importance_sampling`. One that the loss does not have is a ConfigError.
    - `distill_coef`: the advantage of each token gains this times log(teacher / policy), see
      `distilled`; 1 for the loss "distill", else 0.
    - `advantage_baseline`, `scale_rewards`, `advantage_balance`: see `step_advantages`.
    - `discount`: from 0 to 1, for each turn between a reward and a turn (see `step_credit`).
    - `reward_weights`: compare these metrics of the trajectories in place of the reward, each by
      itself, and add them up with these weights; "reward" is the reward. `reward_scales`: the scale
      of some of them, in place of "group".
    - `advantage_fn`: the name of a plugin's advantages, or a function's "module:function", in place
      of all these but `advantage_balance`.
    - `gae_lambda`, `gae_gamma`: of `generalized_advantages`, token by token, with the critic of
      advantage_baseline="value"; 0.95 and 1. `value_learning_rate`: its own; `value_clip`: how far
      a value may move in a step.
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

    learning_rate: float = _field(rate, default=1e-5)
    loss_fn: str | LossSpec | LossPreset = attrs.field(default="cispo")
    distill_coef: float | None = _optional(positive)
    epsilon: float | None = _optional(positive)
    epsilon_high: float | None = _optional(positive)
    importance_sampling_level: str | None = _optional(one_of(LEVELS))
    kimi_k2_tau: float | None = _optional(positive)
    mask_prob_ratio: bool = _field(switch, default=False)
    mask_sequence_ratio: float | None = _optional(above_one)
    max_negative_advantage_importance_sampling_weight: float | None = _optional(positive)
    normalization: str | None = _optional(one_of(NORMALIZATIONS))
    normalization_length: int | None = _optional(count)
    truncated_importance_sampling: float | None = _optional(cap)
    advantage_baseline: str = _field(one_of(BASELINES), default="group_mean")
    scale_rewards: bool | str = _field(scale, default=False)
    advantage_balance: float = _field(balance, default=0.0)
    discount: float = _field(share, default=1.0)
    reward_weights: Mapping[str, float] | None = _optional(weights)
    reward_scales: Mapping[str, bool | str] | None = _optional(scales)
    advantage_fn: str | AdvantageSpec | None = None
    gae_lambda: float | None = _optional(share)
    gae_gamma: float | None = _optional(share)
    value_learning_rate: float | None = _optional(positive)
    value_clip: float | None = _optional(positive)
    kl_penalty_coef: float = _field(not_negative, default=0.0)
    kl_penalty_reference_step: int | None = _optional(step)
    mask_truncated: bool = _field(switch, default=True)
    max_grad_norm: float = _field(positive, default=1.0)
    optimizer: str = _field(one_of(OPTIMIZERS), default="adamw")
    weight_decay: float = _field(not_negative, default=0.0)
    entropy_coef: float = _field(not_negative, default=0.0)
    entropy_target: float | None = _optional(positive)
    grad_accumulation_sequences: int | None = _optional(count)
    micro_batch_tokens: int | None = _optional(count)
    packing: bool = _field(switch, default=True)
    packed_sequence_length: int | None = _optional(count)
    logprob_calculation_chunk_size: int | None = _optional(count)
    save_checkpoint: bool = _field(switch, default=True)

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
                "normalization_length is read only by normalization='constant', and loss "
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
        if self.entropy_target is not None and not self.entropy_coef:
            raise ConfigError(
                "entropy_target has no effect while entropy_coef is 0",
                "Leave it out, or give entropy_coef=...",
            )

        self._check_credit()

    def _check_credit(self) -> None:
        stray = set(self.reward_scales or ()) - set(self.reward_weights or ())
        if stray:
            raise ConfigError(
                f"reward_scales has {min(stray)!r}, which reward_weights does not have",
                "Give it a weight, or leave it out.",
            )
        if self.advantage_baseline == "scenario_mean":
            self._check_scenario_mean()
        self._check_critic()
        if self.advantage_fn is None:
            return
        advantage_spec(self.advantage_fn)
        fields = attrs.fields_dict(type(self))
        for name in REPLACED:
            if getattr(self, name) != fields[name].default:
                raise ConfigError(
                    f"{name} has no effect with advantage_fn, whose function gives the advantages",
                    "Leave one of them out.",
                )

    def _check_scenario_mean(self) -> None:
        if self.reward_weights:
            raise ConfigError(
                "advantage_baseline='scenario_mean' keeps the mean of one reward, and "
                "reward_weights compares several",
                "Leave one of them out.",
            )
        if self.scale_rewards in (True, "group"):
            raise ConfigError(
                "scale_rewards='group' divides by a spread that a group compared with "
                "advantage_baseline='scenario_mean' need not have",
                'Give scale_rewards="batch".',
            )

    def _check_critic(self) -> None:
        if self.critic and not self.loss.uses_rewards:
            raise ConfigError(
                f"loss {self.loss.name!r} reads no rewards, which are what the critic of "
                "advantage_baseline='value' predicts",
                "Leave one of them out. A teacher beside rewards is loss_fn='ppo' with "
                "distill_coef=1.0.",
            )
        if self.critic:
            stray = [n for n in REPLACED[1:] if getattr(self, n) != DEFAULT.get(n)]
            problem = "has no effect with advantage_baseline='value', whose critic compares tokens"
        else:
            stray = [n for n in OF_CRITIC if getattr(self, n) is not None]
            problem = "is of the critic, which advantage_baseline='value' trains"
        if stray:
            raise ConfigError(f"{stray[0]} {problem}", "Leave one of them out, or give both.")

    @classmethod
    def of(
        cls,
        losses: Mapping[str, LossSpec] | None = None,
        advantages: Mapping[str, AdvantageSpec] | None = None,
        /,
        **options: Any,
    ) -> TrainConfig:
        """Build a config from keyword arguments; an unknown one is a ConfigError that names the
        nearest. `losses` (`model.plugins.losses()`) are what plugins offer for `loss_fn`, and
        `advantages` (`model.plugins.advantages()`) for `advantage_fn`.
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
        named = options.get("advantage_fn")
        if advantages is not None and isinstance(named, str) and ":" not in named:
            if named not in advantages:
                raise ConfigError(unknown("advantages", named, advantages))
            options["advantage_fn"] = advantages[named]
        return cls(**options)

    @property
    def critic(self) -> bool:
        """True if a value head gives the advantages."""
        return self.advantage_baseline == "value"

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


def used_config(
    options: Mapping[str, Any],
    losses: Mapping[str, LossSpec],
    advantages: Mapping[str, AdvantageSpec],
) -> TrainConfig | None:
    """Return the config of a step that a backend has trained, without options of its own; None if
    it takes other values than `TrainConfig` does.
    """
    own = attrs.fields_dict(TrainConfig).keys()
    try:
        return TrainConfig.of(losses, advantages, **{n: v for n, v in options.items() if n in own})
    except ConfigError:
        return None
