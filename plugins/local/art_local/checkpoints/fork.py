"""New runs that begin with a checkpoint of other runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from art_core import LoggedRun, Model, open_run
from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json
from art_local.session.checkpoints import MANIFEST, CheckpointStore, StoredCheckpoint

PARENT = "parent.json"
SFT_PLANS = "sft.json"


@attrs.frozen(kw_only=True)
class Source:
    """A verified checkpoint of a run."""

    run: LoggedRun
    stored: StoredCheckpoint

    @classmethod
    def of(cls, requested: str, base: str | None, step: int | None = None) -> Source:
        """Return the checkpoint of RUN@STEP, or of RUN: that of `step`, else the newest.

        Raises ConfigError for a step without a checkpoint, DamagedError for changed files.
        """
        name, at, number = requested.rpartition("@")
        if at and number.isdecimal():
            requested, step = name, int(number)
        run = open_run(requested, base)
        store = CheckpointStore(run.path / "checkpoints")
        steps = store.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            there = ", ".join(map(str, steps)) or "none"
            raise ConfigError(f"{run.name} has {wanted}; there are: {there}", "Give one of these.")
        step = steps[-1] if step is None else step
        if "files" not in read_json(store.path(step) / MANIFEST):
            raise ConfigError(
                f"checkpoint {step} of {run.name} has no weights on this machine",
                "Give a run that was trained with local or unsloth.",
            )
        return cls(run=run, stored=store.read(step))

    @property
    def name(self) -> str:
        """The run and the step."""
        return f"{self.run.name}@{self.stored.step}"

    def costs(self) -> dict[str, float]:
        """Return what the run cost up to this step, by path, with abandoned attempts."""
        found: dict[str, float] = {}
        for step, paths in self.run.costs().steps.items():
            if step <= self.stored.step:
                for path, usd in paths.items():
                    found[path] = found.get(path, 0.0) + usd
        return found

    def described(self) -> dict[str, Any]:
        """Return what a new run records of this one."""
        return {
            "run": self.run.name,
            "path": str(self.run.path),
            "step": self.stored.step,
            "costs": self.costs(),
        }


def fork(source: Source, name: str) -> Path:
    """Make a run that begins with a run's checkpoint; return its directory."""

    def fill(aside: Path) -> None:
        place = CheckpointStore(aside / "checkpoints").path(source.stored.step)
        place.mkdir(parents=True)
        for file in (*source.stored.manifest["files"], MANIFEST):
            linked_or_copied(source.stored.path / file, place / file)
        # an unfinished supervised fine-tuning goes on in the fork
        if (plans := source.run.path / SFT_PLANS).is_file():
            shutil.copy2(plans, aside / SFT_PLANS)

    return new_run([source], name, fill, {"kind": "fork"})


def new_run(
    sources: Sequence[Source], name: str, fill: Callable[[Path], None], about: Mapping[str, Any]
) -> Path:
    """Make a run beside the first source's; `fill(directory)` writes its checkpoint.

    The run is complete or does not exist. Raises ConfigError if it exists already.
    """
    first = sources[0].run
    described = first.model()
    base, project = first.path.parents[2], first.path.parents[1].name
    directory = Model(name=name, project=project, base_path=base, sinks=[]).run_dir
    if os.path.lexists(directory):
        raise ConfigError(f"the run {project}/{name} exists already", "Choose another name.")
    aside = directory.with_name(f".new-{name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        replace_json(aside / "model.json", {**described, "name": name, "project": project})
        parents = [source.described() for source in sources]
        when = {"at": datetime.now(UTC)}
        replace_json(aside / PARENT, {**about, **when, "parents": parents})
        replace_json(aside / "status.json", {"status": str(about["kind"]), "attempt": 0, **when})
        (aside / "history.jsonl").touch()
        aside.rename(directory)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} was deleted meanwhile", "Try again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def linked_or_copied(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no hard links. Files of a checkpoint are
    never changed in place.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)
