"""A step that was trained by a process that ended before the step's row."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json
from art_core.data.store import read_groups, tidy_step, trajectory_file
from art_core.model.backend import Backend, option_names
from art_core.model.sft_plan import SFTPlans
from art_core.run.run import Run

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel

log = logging.getLogger("art_core")


def can_go_back(backend: Backend) -> bool:
    """Return whether a backend loads an older step."""
    return "step" in option_names(backend.register)


async def step_with_row(
    model: TrainableModel, backend: Backend, trained: int, found: int
) -> int | None:
    """Return the step to go back to if training was interrupted between a step's checkpoint and its
    row: the step before it, or in `train_sft` the last one with a checkpoint. None if there was no
    such interruption, or that step cannot be loaded.
    """
    if found != trained + 1 or not can_go_back(backend):
        return None
    stored = {0, *(c.step for c in await backend.checkpoints(model))}
    run_dir = model.run.info.run_dir
    if any(plan.start < found <= plan.end for plan in SFTPlans(run_dir).read()):
        return max(step for step in stored if step <= trained)
    is_stored = trajectory_file(run_dir, "train", found).exists()
    return trained if is_stored and trained in stored else None


@attrs.frozen
class BegunStep:
    """A step that a backend trains: the byte of the step's file at which its groups begin, and
    their place in the run's queue.
    """

    step: int
    start: int
    cursor: int | None

    @staticmethod
    def _file(run_dir: Path) -> Path:
        return run_dir / "begun_step.json"

    def keep(self, run_dir: Path) -> None:
        """Store it until the step's row is written."""
        replace_json(self._file(run_dir), attrs.asdict(self), sync=False)

    @classmethod
    def forget(cls, run_dir: Path) -> None:
        """Remove what is stored."""
        cls._file(run_dir).unlink(missing_ok=True)

    @classmethod
    def read(cls, run_dir: Path) -> BegunStep | None:
        """Return what is stored; None for nothing, and for what can't be read."""
        try:
            return cls(**read_json(cls._file(run_dir)))
        except (ConfigError, TypeError):
            return None


def write_row(run: Run, found: int) -> int:
    """Write the row of the step `found`, which a backend has trained and no row has, from its
    stored groups, with their place in the queue. Return the last trained step in the log.

    What the step's loss was and what it cost is not known. The row counts one optimizer step.
    """
    trained, begun = run.trained_step(), BegunStep.read(run.info.run_dir)
    if begun is None or found != trained + 1 or begun.step != found:
        return trained
    file = trajectory_file(run.info.run_dir, "train", found)
    groups = list(read_groups(file, begun.start)) if file.exists() else []
    log.warning(
        "step %d of %s was trained, and interrupted before its row: the row is written now, from "
        "%d stored groups, without losses, and without what the step cost",
        found,
        run.name,
        len(groups),
    )
    metrics = {"data/step_num_gradient_steps": 1.0}
    run.record("train", found, groups=groups, metrics=metrics, trained=True, cursor=begun.cursor)
    BegunStep.forget(run.info.run_dir)
    tidy_step(run.info.run_dir, groups, (found, begun.start), found)
    return found
