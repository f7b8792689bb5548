"""Work that runs out of memory is run again with less memory, then fails with an error that names
the settings to lower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import attrs
import torch

from art_core.base.errors import BackendError
from art_local.models.device_memory import is_out_of_memory
from art_local.training.checkpointing import Checkpointing

log = logging.getLogger("art_local")
T = TypeVar("T")


@attrs.define(kw_only=True)
class Budget:
    """Tokens of one forward and backward pass: `tokens` now, from the setting `setting`; `settings`
    are those that an error names with their values. Halved at most once, and never with `once`.
    """

    tokens: int
    setting: str
    settings: dict[str, int]
    device: torch.device
    halved: bool = False
    once: bool = False

    def within(
        self,
        work: Callable[[], T],
        *,
        undo: Callable[[], None],
        longest: int,
        checkpointing: Checkpointing | None = None,
    ) -> T:
        """Run work; when memory runs out, undo it and run it again: first with activation
        checkpointing, then with half the budget.

        Raises BackendError when memory runs out after that, or any other error as it is, with the
        work undone. `longest` is the longest sequence, which is never split. `checkpointing` is
        given for work that has backward passes.
        """
        try:
            return work()
        except BaseException as error:
            undo()
            if not is_out_of_memory(error):
                raise
            if checkpointing and checkpointing.switch_on():
                self._report_checkpointing()
            elif self.halved or self.once:
                raise self.problem(longest) from error
            else:
                self._halve()
        self._empty_cache()
        return self.within(work, undo=undo, longest=longest, checkpointing=checkpointing)

    def problem(self, longest: int) -> BackendError:
        """Return the error: what did not fit, and the settings to lower."""
        values = " or ".join(f"{name} (now {value})" for name, value in self.settings.items())
        tried = ", also when tried again with half as many" if self.halved and not self.once else ""
        return BackendError(
            f"out of memory on {self.device} with at most {max(self.tokens, longest)} tokens at "
            f"once{tried}; the longest sequence has {longest} tokens; the weights stay as they "
            "were",
            f"Lower {values}, or let rollouts be shorter.",
        )

    def _report_checkpointing(self) -> None:
        log.warning(
            "out of memory on %s; trying again with activation checkpointing, which stays on. "
            "Set activation_checkpointing=True to begin with it.",
            self.device,
        )

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self) -> None:
        self.halved = True
        self.tokens = max(1, self.tokens // 2)
        log.warning(
            "out of memory on %s; trying once more with %d tokens at once. "
            "Set %s=%d to begin there.",
            self.device,
            self.tokens,
            self.setting,
            self.tokens,
        )
