"""The options of a pipeline."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.rl.config import Check, count, one_of, optional, positive, step, switch, whole

SWAPS = ("turn", "attempt")
REST = ("refill", "drop")


def _limit(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{name} must be a count or a share below 1, got {value!r}")


def _field(check: Check, default: Any) -> Any:
    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        check(attribute.name, value)

    return attrs.field(default=default, validator=validate)


@attrs.frozen(kw_only=True)
class PipelineConfig:
    """Options of `art.pipeline`.

    - `steps`: the step to train up to. `epochs`: passes over the scenarios; 1 if neither is given,
      as many as the steps need if only they are.
    - `attempts`: at each scenario; they are a group.
    - `min_batch_size`, `max_batch_size`: groups of a step. A step begins when it has the least, and
      takes what is ready, up to the most: by default twice the least.
    - `max_steps_off_policy`: by how many steps the weights behind a group's oldest attempt may be
      older than those that are trained. A group that is older is stale. Rollouts stop while enough
      groups are ahead to reach this age. 0 alternates rollouts and training.
    - `max_concurrent`: attempts at the same time in this process; evaluations have as many of their
      own. 0 leaves all attempts to workers elsewhere.
    - `timeout`: seconds of an attempt. `max_exceptions`: more failed attempts since the last step,
      a count or, below 1, a share of those that ended, end the pipeline with a RolloutError.
      `tries`: attempts that may fail in one place of a group before its failure counts.
    - `seed`: of the order of the scenarios, in which each epoch has its own.
    - `swap`: "turn": each turn of an attempt has the newest weights; "attempt": all turns have
      those of its begin, as far as it asks for `model.get_inference_name()` or uses
      `model.recording`.
    - `stale`: "refill" attempts the scenario of a stale group again; "drop" does not.
    - `zero_variance`: groups whose rewards are equal teach nothing and are in the step's row.
      "refill" waits for others in their place, as long as the step has fewer groups than the most;
      "drop" does not.
    - `eval_every`, `eval_repeats`: steps between evaluations, and attempts at each of their
      scenarios.
    - `progress`: show the state while it runs.
    """

    steps: int | None = _field(optional(count), None)
    epochs: int | None = _field(optional(count), None)
    attempts: int = _field(count, 8)
    min_batch_size: int = _field(count, 8)
    max_batch_size: int | None = _field(optional(count), None)
    max_steps_off_policy: int = _field(step, 4)
    max_concurrent: int = _field(step, 64)
    timeout: float | None = _field(optional(positive), None)
    max_exceptions: int | float | None = _field(optional(_limit), None)
    tries: int = _field(count, 1)
    seed: int = _field(whole, 0)
    swap: str = _field(one_of(SWAPS), "turn")
    stale: str = _field(one_of(REST), "refill")
    zero_variance: str = _field(one_of(REST), "refill")
    eval_every: int = _field(count, 10)
    eval_repeats: int = _field(count, 1)
    progress: bool = _field(switch, default=True)

    def __attrs_post_init__(self) -> None:
        if self.most < self.min_batch_size:
            raise ConfigError(
                f"max_batch_size is {self.most}, and min_batch_size {self.min_batch_size}",
                "The most groups of a step can't be fewer than the least.",
            )

    @property
    def most(self) -> int:
        """The most groups of a step."""
        return self.max_batch_size or 2 * self.min_batch_size

    @property
    def passes(self) -> int | None:
        """The passes over the scenarios; None for as many as are needed."""
        return 1 if self.epochs is None and self.steps is None else self.epochs

    @property
    def groups_ahead(self) -> int:
        """How many groups may be begun and not trained. A group that begins after as many others is
        trained `max_steps_off_policy` steps later.
        """
        return (self.max_steps_off_policy + 1) * self.min_batch_size
