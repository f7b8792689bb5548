"""Before a step: how many tokens a pass takes, and whether its layers are computed again."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from art_local.models.device_memory import device_memory
from art_local.training.activation_bound import bytes_per_token
from art_local.training.blueprint import UNCOUNTABLE, Blueprint
from art_local.training.policy import Policy

log = logging.getLogger("art_local")
USABLE = 0.9
"""Share of the free memory that a pass may plan with: allocators lose some to fragments."""
ROUGH_BYTES = 2048
"""More than any layer keeps for each token and element of its hidden state: Llama keeps 60 to 120.
Where even this much fits, or a closer bound does, nothing is counted.
"""


@attrs.frozen(kw_only=True)
class PassSize:
    """The tokens that one pass should take, of sequences that have up to `longest` tokens and
    `total` together; `chunk_rows` rows of logits are held at once.
    """

    tokens: int
    longest: int
    total: int
    chunk_rows: int


class PassSizes:
    """Fits the passes of a policy's steps into the free memory of its device."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._blueprint: Blueprint | None = None
        self._countable = True

    def fitting_tokens(self, wanted: PassSize) -> int:
        """Choose activation checkpointing for the next step, and return the tokens of a pass, at
        most those wanted.

        It is switched on where the activations of the longest sequence do not fit without it. Where
        they fit, the pass is made smaller instead, down to one sequence. Nothing changes where the
        user chose, or where a model's activations cannot be counted.
        """
        checkpointing = self._policy.checkpointing
        if not checkpointing.can_choose:
            return wanted.tokens
        free = int(USABLE * device_memory(self._policy.device).free)
        free -= self._missing_gradients() + logits_bytes(self._config, wanted.chunk_rows)
        if self._most(wanted) <= free:
            checkpointing.choose(on=False)
            return wanted.tokens
        blueprint = self._counted()
        if blueprint is None:
            return wanted.tokens
        kept = blueprint.estimated(wanted.longest)
        self._choose(kept.whole, free, wanted.longest)
        each = kept.checkpointed if checkpointing.on else kept.whole
        return min(wanted.tokens, max(1, free // each) * wanted.longest)

    def _choose(self, needed: int, free: int, longest: int) -> None:
        checkpointing = self._policy.checkpointing
        was_on = checkpointing.on
        checkpointing.choose(on=needed > free)
        if checkpointing.on and not was_on:
            log.info(
                "the activations of a sequence of %d tokens take %.1f GB, %.1f GB are free on %s: "
                "layers are computed again in the backward pass (activation_checkpointing)",
                longest,
                needed / 1e9,
                max(0, free) / 1e9,
                self._policy.device,
            )

    @property
    def _config(self) -> Any:
        return self._policy.base.config.get_text_config()

    def _most(self, wanted: PassSize) -> int:
        tokens = max(wanted.longest, min(wanted.tokens, wanted.total))
        layers = len(self._policy.checkpointing.layers)
        rough = ROUGH_BYTES * int(self._config.hidden_size) * layers
        return min(rough, bytes_per_token(self._policy) or rough) * tokens

    def _missing_gradients(self) -> int:
        trained = self._policy.trained().values()
        return sum(p.nbytes for p in trained if p.grad is None)

    def _counted(self) -> Blueprint | None:
        if self._countable and self._blueprint is None:
            try:
                self._blueprint = Blueprint.of(self._policy)
                self._blueprint.estimated(1)
            except UNCOUNTABLE as error:
                self._countable, self._blueprint = False, None
                log.debug("activations cannot be counted: %s: %s", type(error).__name__, error)
        return self._blueprint


def logits_bytes(text_config: Any, chunk_rows: int) -> int:
    """Return the bytes of a chunk of logits: in fp32, their softmax, and its gradient."""
    return 3 * 4 * chunk_rows * int(text_config.vocab_size)
