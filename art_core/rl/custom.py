"""A loss of your own: what offers it, what it is given, and how it is found by its import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from art_core.base.errors import ConfigError


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
    """What a loss function sees: tensors [R], one entry for each token that bears loss, in a part
    of the step's sequences; no sequence is split.

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
    """Return a spec that imports "module:function" when it is created; ConfigError then says what
    can't be found.
    """
    module, _, name = path.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f'a loss function is named "module:function", got {path!r}')

    def create() -> LossFunction:
        import importlib

        try:
            found: LossFunction = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the loss function {path!r} can't be imported: {error}",
                "It must be importable where the trainer runs: install it, or set PYTHONPATH.",
            ) from error
        return found

    return LossSpec(name=path, create=create)
