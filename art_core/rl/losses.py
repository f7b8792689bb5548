"""Losses as values: the presets with their clips, levels and averages, and losses of your own. The
tensors are a backend's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.rl.advantages import importer


@attrs.frozen(kw_only=True)
class LossSpec:
    """A loss of your own: `create()` imports what is heavy and returns a function from `LossTokens`
    to the loss of each token [R], before averaging.
    """

    name: str
    create: Callable[[], LossFunction]
    summary: str = ""


@attrs.frozen(kw_only=True, eq=False)
class LossTokens:
    """Tensors [R] that a loss function gets: one entry for each token that bears loss, in a part of
    the step's sequences; no sequence is split.

    - `logprobs_R`: of the tokens under the policy, with gradient. All else but the ratios is data.
    - `old_logprobs_R`: under the policy that sampled them, as the engine reported them; with
      several optimizer steps a batch, the policy's own from before the first. Always finite.
    - `log_ratios_R`: log-probs minus old ones, clamped to +-20; `ratios_R`: their exponential at
      the level of `importance_sampling_level`. Both with gradient.
    - `advantages_R`: of the token's trajectory, a KL penalty included.
    - `weights_R`: how much the token will count in the average; `sequences_R`: which tokens share a
      sequence; `entropies_R`: of the policy's distribution, in nats.
    """

    logprobs_R: Any
    old_logprobs_R: Any
    log_ratios_R: Any
    ratios_R: Any
    advantages_R: Any
    weights_R: Any
    sequences_R: Any
    entropies_R: Any


LossFunction = Callable[[LossTokens], Any]
"""Returns the loss of each token [R], a tensor with gradient."""


def spec_of_path(path: str) -> LossSpec:
    """Return a spec whose `create()` imports "module:function", or the function of the `LossSpec`
    "module:attribute", or raises ConfigError.
    """
    return LossSpec(name=path, create=importer(path, "loss function", LossSpec))


Level = Literal["token", "sequence", "average", "geometric_average"]
Normalization = Literal["trajectory", "sequence", "token", "constant"]
LEVELS: tuple[str, ...] = get_args(Level)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)

_EVERY_LOSS = ("distill_coef", "importance_sampling_level", "mask_sequence_ratio", "normalization",
               "normalization_length", "truncated_importance_sampling")  # fmt: skip
_NEGATIVE = "max_negative_advantage_importance_sampling_weight"
_CLIP = ("epsilon", "epsilon_high", "mask_prob_ratio", _NEGATIVE)


@attrs.frozen(kw_only=True)
class LossPreset:
    """A policy-gradient loss over importance ratios r = exp(logp - old_logp), token by token.

    - `surrogate="weight"`: -clip(r, 1 - epsilon, 1 + epsilon_high).detach() * A * logp.
    - `surrogate="ratio"`: -min(r * A, clip(r, 1 - epsilon, 1 + epsilon_high) * A).
    - `surrogate="function"`: what `spec` makes.
    - `surrogate="likelihood"`: -logp, without ratios and advantages.

    No `epsilon` means no clip. `importance_sampling_level`: the ratio of a token is its own
    ("token"), the geometric mean over its sequence ("sequence", GSPO eq. 7), or the arithmetic or
    geometric mean of these two. `ratio_cap` bounds r from above before all else, and
    `max_negative_advantage_importance_sampling_weight` where the advantage is negative.
    `mask_prob_ratio` drops tokens whose ratio lies outside of the clip range,
    `mask_sequence_ratio` sequences whose own ratio is above it or below its inverse.
    `kimi_k2_tau`: A - tau * log r stands for A, with the token's own r (Kimi k1.5, arXiv
    2501.12599, section 2.3.2; K2, 2507.20534).

    `truncated_importance_sampling` caps the ratio of the policy before the first optimizer step to
    the engine, which multiplies the loss, when r is taken to the former. When r is taken to the
    engine itself it holds that factor already, and is never multiplied by it again.

    `normalization` is the divisor of the sum of the token losses, over a whole optimizer
    step: each trajectory counts once ("trajectory"), each training sequence ("sequence"), each
    token ("token"), or each token 1 / `normalization_length` in the mean over sequences
    ("constant"). Without `uses_rewards` the advantages of rewards are 0; `distill_coef` is how much
    the log-ratio of a teacher adds to them (see `distilled`). `options` are the parameters of
    `TrainConfig` that the loss has.
    """

    name: str
    source: str
    surrogate: Literal["weight", "ratio", "function", "likelihood"]
    epsilon: float = math.inf
    epsilon_high: float = math.inf
    importance_sampling_level: Level = "token"
    normalization: Normalization = "trajectory"
    normalization_length: int = 1024
    ratio_cap: float = math.inf
    truncated_importance_sampling: float = 2.0
    max_negative_advantage_importance_sampling_weight: float = math.inf
    mask_prob_ratio: bool = False
    mask_sequence_ratio: float = math.inf
    kimi_k2_tau: float = 0.0
    uses_rewards: bool = True
    distill_coef: float = 0.0
    spec: LossSpec | None = None
    options: tuple[str, ...] = ()


PRESETS = {
    preset.name: preset
    for preset in (
        LossPreset(
            name="cispo",
            surrogate="weight",
            epsilon=1.0,
            epsilon_high=4.0,
            source="CISPO, arXiv 2506.13585, eq. 4; clip values after ScaleRL, 2510.13786",
            options=(*_EVERY_LOSS, *_CLIP, "kimi_k2_tau"),
        ),
        LossPreset(
            name="ppo",
            surrogate="ratio",
            epsilon=0.2,
            epsilon_high=0.28,
            ratio_cap=2.0,
            source="PPO, arXiv 1707.06347, eq. 7; clip-higher of DAPO, 2503.14476, eq. 10; cap of "
            "the ratio: INTELLECT-2, 2505.07291, section 3.4",
            options=(*_EVERY_LOSS, *_CLIP),
        ),
        LossPreset(
            name="gspo",
            surrogate="ratio",
            epsilon=3e-4,
            epsilon_high=4e-4,
            importance_sampling_level="sequence",
            normalization="sequence",
            ratio_cap=2.0,
            source="GSPO, arXiv 2507.18071, eq. 5 and 7; clip values of section 5.1",
            options=(*(o for o in _EVERY_LOSS if o != "importance_sampling_level"), *_CLIP),
        ),
        LossPreset(
            name="dr_grpo",
            surrogate="ratio",
            epsilon=0.2,
            epsilon_high=0.2,
            normalization="constant",
            ratio_cap=2.0,
            source="Dr. GRPO, arXiv 2503.20783, section 3.2 and listing 1",
            options=(*_EVERY_LOSS, *_CLIP),
        ),
        LossPreset(
            name="dapo",
            surrogate="ratio",
            epsilon=0.2,
            epsilon_high=0.28,
            normalization="token",
            ratio_cap=2.0,
            source="DAPO, arXiv 2503.14476, eq. 8 and 10",
            options=(*_EVERY_LOSS, *_CLIP),
        ),
        LossPreset(
            name="importance_sampling",
            surrogate="weight",
            ratio_cap=2.0,
            source="REINFORCE under truncated importance weights: Espeholt et al., arXiv "
            "1802.01561, section 4.2",
            options=(*_EVERY_LOSS, _NEGATIVE, "kimi_k2_tau"),
        ),
        LossPreset(
            name="distill",
            surrogate="weight",
            ratio_cap=2.0,
            normalization="token",
            uses_rewards=False,
            distill_coef=1.0,
            source="reverse KL to a teacher on the policy's own tokens: Thinking Machines, "
            '"On-Policy Distillation" (2025); GKD, arXiv 2306.13649, section 3',
            options=_EVERY_LOSS,
        ),
    )
}


def loss_preset(loss: str | LossSpec | LossPreset) -> LossPreset:
    """Return the preset of a name, or that of a function "module:function" or a `LossSpec`.

    A preset is returned as it is. ConfigError names those that exist. A function is not imported
    here.
    """
    if isinstance(loss, LossPreset):
        return loss
    if isinstance(loss, LossSpec):
        return _custom(loss)
    if isinstance(loss, str) and ":" in loss:
        return _custom(spec_of_path(loss))
    try:
        return PRESETS[loss]
    except (KeyError, TypeError):
        raise ConfigError(
            unknown("loss", loss, PRESETS),
            'A function of your own is named by its import path, "my_module:my_loss".',
        ) from None


def _custom(spec: LossSpec) -> LossPreset:
    source = spec.summary or "a function of your own"
    return LossPreset(
        name=spec.name, surrogate="function", source=source, spec=spec, options=_EVERY_LOSS
    )
