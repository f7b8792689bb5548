"""Work that runs out of memory is tried once more in smaller pieces, then told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import attrs
import torch

from art_core.base.errors import BackendError

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

    def within(self, work: Callable[[], T], *, undo: Callable[[], None], longest: int) -> T:
        """Run work; when memory runs out, undo it, halve the budget and run it again.

        Raises BackendError when it runs out a second time, or any other error as it is, with the
        work undone. `longest` is the longest sequence, which is never split.
        """
        try:
            return work()
        except BaseException as error:
            undo()
            if not is_out_of_memory(error):
                raise
            if self.halved or self.once:
                raise self.problem(longest) from error
        self._halve()
        return self.within(work, undo=undo, longest=longest)

    def problem(self, longest: int) -> BackendError:
        """Say what did not fit, and which settings to lower."""
        values = " or ".join(f"{name} (now {value})" for name, value in self.settings.items())
        tried = ", also when tried again with half as many" if self.halved and not self.once else ""
        return BackendError(
            f"out of memory on {self.device} with at most {max(self.tokens, longest)} tokens at "
            f"once{tried}; the longest sequence has {longest} tokens; the weights stay as they "
            "were",
            f"Lower {values}, or let rollouts be shorter.",
        )

    def _halve(self) -> None:
        self.halved = True
        self.tokens = max(1, self.tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "out of memory on %s; trying once more with %d tokens at once. "
            "Set %s=%d to begin there.",
            self.device,
            self.tokens,
            self.setting,
            self.tokens,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch or of Python means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    # the last is how cuBLAS says it
    told = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
    return isinstance(error, RuntimeError) and any(words in text for words in told)
