"""The record of each step: the paths of its states at the service, in a manifest."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import attrs

from art_core.base.errors import BackendError, ConfigError
from art_core.base.files import read_json, replace_json

MANIFEST = "manifest.json"
SCHEMA = 1
RL, SFT = "rl", "sft"
"""The phases of training; the optimizer's state of one is not used in the other."""


@attrs.frozen(kw_only=True)
class Manifest:
    """A step's states at the service: `state_path` for training, with the optimizer's state, and
    `sampler_path` for sampling. The optimizer's state is that of a `phase`.
    """

    step: int
    base_model: str
    lora_rank: int
    state_path: str
    sampler_path: str
    created_at: str = attrs.field(factory=lambda: datetime.now(UTC).isoformat())
    phase: str = RL
    schema: int = SCHEMA

    def check(self, **expected: object) -> None:
        """Raise ConfigError if the step was trained with other values."""
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"step {self.step} of this run was trained with {name}="
                    f"{getattr(self, name)!r}, not {value!r}",
                    "Use the same value to resume, or another model name to start a new run.",
                )


@attrs.frozen
class Manifests:
    """The checkpoints of a run, `<run_dir>/checkpoints/<step:04d>/manifest.json`."""

    directory: Path

    def path(self, step: int) -> Path:
        """Return a checkpoint's directory."""
        return self.directory / f"{step:04d}"

    def write(self, manifest: Manifest) -> Path:
        """Save a step's manifest; BackendError if it cannot be written."""
        place = self.path(manifest.step)
        try:
            replace_json(place / MANIFEST, attrs.asdict(manifest))
        except OSError as error:
            raise BackendError(
                f"step {manifest.step} is at the service as {manifest.state_path}, and could not "
                f"be recorded in {place}: {error}",
                "Free disk space.",
            ) from error
        return place

    def steps(self) -> list[int]:
        """Return the saved steps, oldest first."""
        found = self.directory.glob(f"*/{MANIFEST}")
        return sorted(int(file.parent.name) for file in found if file.parent.name.isdecimal())

    def read(self, step: int) -> Manifest:
        """Return a step's manifest; BackendError if it cannot be read."""
        place = self.path(step) / MANIFEST
        try:
            stored = read_json(place)
            if stored["schema"] != SCHEMA:
                raise BackendError(f"{place} has schema {stored['schema']!r}", "Update art-tinker.")
            return Manifest(**stored)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{place} is not readable: {error!r}") from error

    def newest(self) -> Manifest | None:
        """Return the newest step's manifest; None before the first."""
        steps = self.steps()
        return self.read(steps[-1]) if steps else None

    def delete(self, step: int) -> None:
        """Delete a step's manifest."""
        (self.path(step) / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):
            self.path(step).rmdir()


@attrs.frozen(kw_only=True)
class Identity:
    """A run's identity, which tags its sessions: an id, and the time of the run's start."""

    run_id: str
    since: str
    base_url: str | None = None

    @classmethod
    def of(cls, run_dir: Path, base_url: str | None) -> Identity:
        """Return a run's identity; create it in `tinker.json` the first time."""
        known = cls.known(run_dir)
        if known is not None:
            return known
        since = datetime.now(UTC).isoformat(timespec="seconds")
        new = cls(run_id=uuid.uuid4().hex, since=since, base_url=base_url)
        replace_json(run_dir / "tinker.json", attrs.asdict(new))
        return new

    @classmethod
    def known(cls, run_dir: Path) -> Identity | None:
        """Return a run's identity; None if the run was never at Tinker."""
        stored = read_json(run_dir / "tinker.json")
        return cls(**stored) if stored else None

    def metadata(self, run: str, split: str) -> dict[str, str]:
        """Return the tags of a session of this run."""
        return {"art_run": run, "art_run_id": self.run_id, "art_split": split}
