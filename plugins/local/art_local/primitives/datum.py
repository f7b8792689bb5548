"""A sequence with what its loss needs, and the losses that a client may name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import numpy as np

from art_core.base.errors import ConfigError, unknown
from art_core.rl.losses import LossPreset

CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
TARGETS, MASK = "target_tokens", "sequence_ratio_mask"
_OF_RATIOS = ("logprobs", "advantages")


@attrs.frozen(kw_only=True)
class LossKind:
    """A loss: the inputs that each datum must and may have, and its options with their defaults."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    options: Mapping[str, float] = attrs.field(factory=dict)


LOSSES = {
    "cross_entropy": LossKind(needs=(), may=("weights",)),
    "importance_sampling": LossKind(needs=_OF_RATIOS),
    "ppo": LossKind(needs=_OF_RATIOS, options=CLIP),
    "cispo": LossKind(needs=_OF_RATIOS, options=CLIP),
    "gspo": LossKind(needs=_OF_RATIOS, may=(MASK,), options=CLIP),
    "dro": LossKind(needs=_OF_RATIOS, options={"beta": 0.05}),
}


@attrs.frozen(kw_only=True)
class Loss:
    """A loss by name, with all of its options. ConfigError for one that does not exist."""

    name: str
    options: Mapping[str, float]

    @classmethod
    def of(cls, name: str, given: Mapping[str, float | str]) -> Loss:
        """Return a loss with the given options and the defaults of the others."""
        if name not in LOSSES:
            raise ConfigError(unknown("loss", name, LOSSES))
        options = dict(LOSSES[name].options)
        for key, value in given.items():
            if key not in options:
                raise ConfigError(unknown(f"option of {name}", key, options or ["none"]))
            if isinstance(value, str) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{key} must be a number of at least 0, got {value!r:.80}")
            options[key] = float(value)
        return cls(name=name, options=options)

    @property
    def preset(self) -> LossPreset:
        """The loss as one of the trainer's; its weights and, for `dro`, its formula are extra."""
        level = "sequence" if self.name == "gspo" else "token"
        surrogate = {
            "cross_entropy": "likelihood",
            "cispo": "weight",
            "importance_sampling": "ratio",
        }
        low = self.options.get("clip_low_threshold", -math.inf)
        high = self.options.get("clip_high_threshold", math.inf)
        return LossPreset(
            name=self.name,
            source="Tinker's documented losses",
            surrogate=surrogate.get(self.name, "ratio"),  # type: ignore[arg-type]
            epsilon=1 - low,
            epsilon_high=high - 1,
            importance_sampling_level=level,  # type: ignore[arg-type]
        )


@attrs.frozen(kw_only=True, eq=False)
class Datum:
    """Input tokens [T], target tokens [T] or [T, K], and what the loss needs, of their shape.

    The target of a position is scored given the input tokens up to it, so targets are usually the
    input shifted by one.
    """

    tokens: np.ndarray
    targets: np.ndarray
    inputs: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, tokens: np.ndarray, inputs: Mapping[str, np.ndarray], loss: Loss) -> Datum:
        """Return a datum; ConfigError if inputs are missing, of other shapes or not finite."""
        kind = LOSSES[loss.name]
        rest = dict(inputs)
        targets = rest.pop(TARGETS, None)
        missing = [name for name in kind.needs if name not in rest]
        if targets is None or missing:
            needed = ", ".join((TARGETS, *kind.needs))
            raise ConfigError(
                f"a datum of loss {loss.name!r} lacks {missing[0] if missing else TARGETS!r}; "
                f"loss_fn_inputs must have {needed}"
            )
        for name in rest:
            if name not in (*kind.needs, *kind.may):
                raise ConfigError(
                    unknown(f"input of loss {loss.name}", name, (TARGETS, *kind.needs, *kind.may))
                )
        cls._check_shapes(tokens, targets, rest, wide=loss.name == "cross_entropy")
        return cls(tokens=tokens, targets=targets, inputs=rest)

    @staticmethod
    def _check_shapes(
        tokens: np.ndarray, targets: np.ndarray, rest: Mapping[str, np.ndarray], *, wide: bool
    ) -> None:
        if not len(tokens):
            raise ConfigError("a datum has no tokens")
        wide = wide and targets.ndim == 2
        if targets.shape[:1] != tokens.shape or not (targets.ndim == 1 or wide):
            shape = list(targets.shape)
            raise ConfigError(f"target_tokens have shape {shape} for {len(tokens)} tokens")
        for name, value in rest.items():
            if value.shape != targets.shape:
                raise ConfigError(
                    f"{name} has shape {list(value.shape)}, target_tokens {list(targets.shape)}"
                )
            if not np.isfinite(value).all():
                raise ConfigError(f"{name} has a value that is not finite")

    def check_tokens(self, vocabulary: int, context_length: int) -> None:
        """Raise ConfigError for tokens outside of the vocabulary or too many of them."""
        for tokens in (self.tokens, self.targets):
            odd = tokens[(tokens < 0) | (tokens >= vocabulary)]
            if len(odd):
                raise ConfigError(f"token {odd[0]} is outside the vocabulary of {vocabulary}")
        if len(self.tokens) > context_length:
            raise ConfigError(
                f"a datum has {len(self.tokens)} tokens, the model's context {context_length}"
            )


@attrs.frozen(kw_only=True, eq=False)
class Scored:
    """The log-probs of a datum's targets and their losses, before the sum; both of their shape."""

    logprobs: np.ndarray
    losses: np.ndarray
