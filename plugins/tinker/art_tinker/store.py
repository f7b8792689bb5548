"""What is kept of each step: where the service has its states. A manifest is whole or absent."""

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


@attrs.frozen(kw_only=True)
class Manifest:
    """A step's states at the service: `state_path` to train on from (with the optimizer's),
    `sampler_path` to sample from.
    """

    step: int
    base_model: str
    lora_rank: int
    state_path: str
    sampler_path: str
    created_at: str = attrs.field(factory=lambda: datetime.now(UTC).isoformat())
    schema: int = SCHEMA

    def check(self, **asked: object) -> None:
        """Raise ConfigError when the step was trained with other values than are asked for."""
        for name, value in asked.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"step {self.step} of this run was trained with {name}="
                    f"{getattr(self, name)!r}, not {value!r}",
                    "Use the same to resume, or another model name to start afresh.",
                )


@attrs.frozen
class Manifests:
    """The checkpoints of a run, `<run_dir>/checkpoints/<step:04d>/manifest.json`."""

    directory: Path

    def path(self, step: int) -> Path:
        """Return a checkpoint's directory."""
        return self.directory / f"{step:04d}"

    def write(self, manifest: Manifest) -> Path:
        """Keep a step; BackendError when the disk does not take it."""
        place = self.path(manifest.step)
        try:
            replace_json(place / MANIFEST, attrs.asdict(manifest))
        except OSError as error:
            raise BackendError(
                f"step {manifest.step} is at the service as {manifest.state_path}, and could not "
                f"be noted in {place}: {error}",
                "Free disk space.",
            ) from error
        return place

    def steps(self) -> list[int]:
        """Return the steps that are kept, oldest first."""
        found = self.directory.glob(f"*/{MANIFEST}")
        return sorted(int(file.parent.name) for file in found if file.parent.name.isdecimal())

    def read(self, step: int) -> Manifest:
        """Return a step's manifest; BackendError says what is wrong with it."""
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
        """Forget a step."""
        (self.path(step) / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):
            self.path(step).rmdir()


@attrs.frozen(kw_only=True)
class Identity:
    """How a run's sessions are found again at the service: an id of its own, and when it began."""

    run_id: str
    since: str
    base_url: str | None = None

    @classmethod
    def of(cls, run_dir: Path, base_url: str | None) -> Identity:
        """Return a run's identity, made and kept in `tinker.json` the first time."""
        known = cls.known(run_dir)
        if known is not None:
            return known
        since = datetime.now(UTC).isoformat(timespec="seconds")
        made = cls(run_id=uuid.uuid4().hex, since=since, base_url=base_url)
        replace_json(run_dir / "tinker.json", attrs.asdict(made))
        return made

    @classmethod
    def known(cls, run_dir: Path) -> Identity | None:
        """Return a run's identity; None for a run that never was at Tinker."""
        stored = read_json(run_dir / "tinker.json")
        return cls(**stored) if stored else None

    def metadata(self, run: str, split: str) -> dict[str, str]:
        """Return what a session of this run is tagged with."""
        return {"art_run": run, "art_run_id": self.run_id, "art_split": split}
