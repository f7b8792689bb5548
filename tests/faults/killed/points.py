"""The phases of a run, and points in them at which a process kills itself or asks to be killed."""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

PHASES = (
    "loading", "rollout", "train step", "checkpoint", "SFT", "evaluation", "between phases",
)  # fmt: skip
NONE = len(PHASES) - 1
now = mmap.mmap(-1, 1)
"""The number of the phase that the newest fork is in; shared with its parent."""


@attrs.frozen
class Call:
    """The `number`-th call of a Python or C function in a phase at a step. With `late`, the parent
    sends the signal, some time after the call.
    """

    phase: str
    step: int
    number: int
    late: bool = False


@attrs.frozen
class Named:
    """Before or after the `number`-th call of one function in a phase."""

    phase: str
    function: str
    when: str
    number: int = 1


NAMED = (
    Named("loading", "art_local.session.model_session.load_file", "before"),
    Named("loading", "art_local.session.model_session.ModelSession._publish", "after"),
    Named("rollout", "art_local.engine.engine.TransformersEngine._request", "before", 3),
    Named("rollout", "art_local.engine.engine.TransformersEngine._next", "after", 20),
    Named("train step", "art_core.model.trainable.ready_groups", "before"),
    Named("train step", "art_core.model.model.append_groups", "before"),
    Named("train step", "art_core.model.model.append_groups", "after"),
    Named("train step", "art_local.training.optimizer.Optimizer._apply", "before"),
    Named("train step", "art_local.training.optimizer.Optimizer._apply", "after"),
    Named("train step", "art_core.log.history.HistoryLog.append", "before"),
    Named("train step", "art_core.log.history.HistoryLog.append", "after"),
    Named("train step", "art_core.model.trainable.append_options", "after"),
    Named("train step", "art_core.model.trainable.tidy_step", "after"),
    Named("checkpoint", "art_local.training.policy.Policy.save", "before"),
    Named("checkpoint", "art_local.training.policy.Policy.save", "after"),
    Named("checkpoint", "art_local.session.checkpoints._manifest", "before"),
    Named("checkpoint", "art_local.session.checkpoints._fsync", "before"),
    Named("checkpoint", "pathlib.Path.rename", "before"),
    Named("checkpoint", "pathlib.Path.rename", "after"),
    Named("SFT", "art_core.model.sft_plan.SFTPlans.write", "before"),
    Named("SFT", "art_core.model.sft_plan.SFTPlans.write", "after"),
    Named("SFT", "art_local.training.optimizer.Optimizer._apply", "after", 2),
    Named("SFT", "art_core.log.history.HistoryLog.append", "before", 1),
    Named("SFT", "art_core.log.history.HistoryLog.append", "before", 3),
    Named("SFT", "art_core.log.history.HistoryLog.append", "after", 3),
    Named("evaluation", "art_core.evaluation.attempts.AttemptFile._append", "before"),
    Named("evaluation", "art_core.evaluation.attempts.AttemptFile.add", "before", 2),
    Named("evaluation", "art_core.evaluation.attempts.AttemptFile.add", "after", 2),
    Named("evaluation", "art_core.evaluation.attempts.AttemptFile.finish", "before"),
    Named("evaluation", "art_core.evaluation.attempts.AttemptFile.finish", "after"),
    Named("evaluation", "art_core.log.history.HistoryLog.append", "before"),
    Named("evaluation", "art_core.log.history.HistoryLog.append", "after"),
)


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@attrs.define
class Points:
    """The phases of this process, one inside the other, and the point at which it ends.

    Without a point, `calls` counts the calls of each phase and step.
    """

    point: Call | Named | None = None
    ask: Callable[[], object] = die
    """Asks the parent for the signal."""
    calls: Counter[tuple[str, int]] = attrs.field(factory=Counter)
    counts: bool = False
    _inside: list[tuple[str, int]] = attrs.field(factory=list)

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """Be in a phase while the block lasts; in a thread of its own, too."""
        outer, point = sys.getprofile(), self.point
        self._inside.append((name, step))
        now[0] = PHASES.index(name)
        wanted = isinstance(point, Call) and (point.phase, point.step) == (name, step)
        sys.setprofile(self._count if wanted or self.counts else None)
        try:
            yield
        finally:
            sys.setprofile(outer)
            self._inside.pop()
            now[0] = PHASES.index(self._inside[-1][0]) if self._inside else NONE

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        if event not in ("call", "c_call"):
            return
        place = self._inside[-1]
        self.calls[place] += 1
        point = self.point
        if isinstance(point, Call) and self.calls[place] == point.number:
            (self.ask if point.late else die)()

    def within(self, path: str, phase: str, step: Callable[..., int]) -> None:
        """Make each call of a function a phase, whose step is made of its arguments."""
        owner, name, function = _found(path)

        def inside(*given: Any, **named: Any) -> Any:
            with self.phase(phase, step(*given, **named)):
                return function(*given, **named)

        setattr(owner, name, inside)

    def arm(self) -> None:
        """Replace the function of a named point by one that kills."""
        if not isinstance(self.point, Named):
            return
        point = self.point
        owner, name, function = _found(point.function)
        seen = 0

        def killing(*given: Any, **named: Any) -> Any:
            nonlocal seen
            inside = bool(self._inside) and self._inside[-1][0] == point.phase
            seen += inside
            due = inside and seen == point.number
            if due and point.when == "before":
                die()
            result = function(*given, **named)
            if due:
                die()
            return result

        setattr(owner, name, killing)


def _found(path: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return the module or class of a function, its name there, and the function."""
    owner_path, _, name = path.rpartition(".")
    try:
        owner: Any = importlib.import_module(owner_path)
    except ModuleNotFoundError:
        module, _, kind = owner_path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    return owner, name, getattr(owner, name)
