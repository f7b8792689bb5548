"""Checkpoints on disk: one directory per step, complete or absent, with a manifest to verify it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from safetensors import SafetensorError

from art_core.base.errors import BackendError, ConfigError
from art_local.engine.protocol import StepWeights
from art_local.session.changes import refitted

if TYPE_CHECKING:
    import torch

    from art_local.models.find import BaseIdentity
    from art_local.session.model_session import SessionSetup
    from art_local.training.policy import Policy

log = logging.getLogger("art_local")
MANIFEST = "manifest.json"
CHAT_TEMPLATE = "chat_template.jinja"
SCHEMA = 1
DIGEST = "sha256"
"""The manifest's own hash; checkpoints of earlier releases have none."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LOCK_TIMEOUT_S = 600.0


class DamagedError(BackendError):
    """A checkpoint is incomplete or differs from what was written."""


@attrs.frozen(kw_only=True)
class StoredCheckpoint:
    """A verified checkpoint: its step, directory and manifest."""

    step: int
    path: Path
    manifest: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class AdapterCard:
    """LoRA of a rank and alpha (None: all weights are trained), initialized from a seed, over a
    base that may be quantized ("nf4"). With `accept_changes`, checkpoints of another rank, alpha or
    quantization are taken.
    """

    lora: tuple[int, int] | None
    seed: int
    quantization: str | None = None
    accept_changes: bool = False

    def __str__(self) -> str:
        return (
            "full fine-tuning" if self.lora is None else "LoRA rank {} alpha {}".format(*self.lora)
        )

    def manifest(self) -> dict[str, Any]:
        """Return the entries for a checkpoint's manifest."""
        rank, alpha = self.lora or (None, None)
        return {
            "lora_rank": rank,
            "lora_alpha": alpha,
            "full_finetune": self.lora is None,
            "quantization": self.quantization,
        }

    def check(self, stored: StoredCheckpoint) -> None:
        """Raise ConfigError for a checkpoint with other settings, with all differences; with
        `accept_changes` only for one of all weights, or if all weights are trained now.
        """
        different = {
            key: (stored.manifest.get(key), value)
            for key, value in self.manifest().items()
            if stored.manifest.get(key) != value
        }
        if not different or (self.accept_changes and "full_finetune" not in different):
            return
        texts = [
            f"{key}={was!r}, this run asks for {now!r}" for key, (was, now) in different.items()
        ]
        remedy = "Use the same options to resume, or another model name to start afresh"
        accept = ", or continue with accept_changes=True"
        raise ConfigError(
            f"checkpoint {stored.path} was trained with {'; with '.join(texts)}",
            f"{remedy}{'' if 'full_finetune' in different else accept}.",
        )


@attrs.frozen
class CheckpointStore:
    """The checkpoints of one run, in `<run_dir>/checkpoints/<step:04d>/`."""

    directory: Path

    def write(
        self, step: int, fill: Callable[[Path], None], about: Mapping[str, Any]
    ) -> StoredCheckpoint:
        """Write a checkpoint: `fill(directory)` writes its files; then manifest, fsync and rename.

        Replaces an older checkpoint of that step. Raises BackendError if it can't be written; then
        no part of it stays.
        """
        aside, place = (
            self.directory / f".tmp-{step:04d}-{os.getpid()}",
            self.directory / f"{step:04d}",
        )
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            fill(aside)
            manifest = _manifest(aside, step, about)
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            for file in aside.iterdir():
                _fsync(file)
            _fsync(aside)
            if place.exists():
                place.rename(self.directory / f".tmp-old-{step:04d}-{os.getpid()}")
            aside.rename(place)
            _fsync(self.directory)
        except (OSError, SafetensorError) as error:  # safetensors raises the latter for disk errors
            raise BackendError(
                f"checkpoint {step} could not be written to {place}: {error}",
                "Free disk space or delete old checkpoints (model.delete_checkpoints()); "
                "the checkpoints before it are as they were.",
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self.directory / f".tmp-old-{step:04d}-{os.getpid()}", ignore_errors=True)
        return StoredCheckpoint(step=step, path=place, manifest=manifest)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first; contents are not read."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(p.name)
            for p in self.directory.iterdir()
            if p.name.isdecimal() and (p / MANIFEST).is_file()
        )

    def newest(self, step: int | None = None) -> Path | None:
        """Return the directory of the newest checkpoint, or of `step`; contents are not read."""
        steps = [each for each in self.steps() if step in (None, each)]
        return self.path(steps[-1]) if steps else None

    def read(self, step: int) -> StoredCheckpoint:
        """Return a checkpoint after checking each file's size and hash.

        Raises DamagedError for a damaged one, BackendError for one that can't be read here.
        """
        path = self.path(step)
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            if manifest.get(DIGEST, _digest(manifest)) != _digest(manifest):
                raise DamagedError(f"checkpoint {path} is corrupted: {MANIFEST} was changed")
            if manifest["schema"] != SCHEMA:
                raise BackendError(
                    f"checkpoint {path} has schema {manifest['schema']!r}, this art-local "
                    f"reads {SCHEMA}",
                    "Update art-local.",
                )
            for name, stored in manifest["files"].items():
                if (path / name).stat().st_size != stored["bytes"]:
                    raise DamagedError(
                        f"checkpoint {path} is corrupted: {name} has another size than written"
                    )
                if _sha256(path / name) != stored["sha256"]:
                    raise DamagedError(
                        f"checkpoint {path} is corrupted: {name} has other contents than written"
                    )
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"checkpoint {path} is incomplete: {error}") from error
        except OSError as error:
            raise BackendError(
                f"checkpoint {path} could not be read: {error}",
                "It was not changed. Make it readable, or move it to resume from an older one.",
            ) from error
        return StoredCheckpoint(step=step, path=path, manifest=manifest)

    def newest_whole(self) -> StoredCheckpoint | None:
        """Remove the remains of a crash and return the newest checkpoint that is not damaged.

        Damaged ones are renamed to `<step>.corrupted`, with a warning, and never deleted. Raises
        BackendError for one that can't be read here, instead of using older weights.
        """
        self._clean()
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except DamagedError as error:
                aside = _free_name(self.path(step).with_suffix(".corrupted"))
                self.path(step).rename(aside)
                log.warning("%s; it was renamed to %s", error, aside.name)
        return None

    def older(self, step: int) -> StoredCheckpoint | None:
        """Return the checkpoint of a step to go back to, None for step 0.

        Raises ConfigError for a step without a checkpoint, and what `read` raises.
        """
        self._clean()
        if step == 0:
            return None
        if step not in self.steps():
            raise ConfigError(
                f"step {step} has no checkpoint in {self.directory}; there are: "
                f"{', '.join(map(str, self.steps())) or 'none'}",
                "Give one of these, 0 for the base model, or leave step out for the newest.",
            )
        return self.read(step)

    def abandon_after(self, step: int) -> None:
        """Rename the checkpoints after a step to `<step>.abandoned`: a resume ignores them."""
        for later in [each for each in self.steps() if each > step]:
            aside = _free_name(self.path(later).with_suffix(".abandoned"))
            self.path(later).rename(aside)
            log.warning(
                "going back to step %d: checkpoint %d is kept as %s", step, later, aside.name
            )

    def delete(self, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints except those steps and the newest; return the deleted steps."""
        deleted = [step for step in self.steps()[:-1] if step not in keep]
        for step in deleted:
            # renamed first, so that a kill in the middle leaves no half checkpoint under its name
            aside = self.directory / f".tmp-deleted-{step:04d}-{os.getpid()}"
            self.path(step).rename(aside)
            shutil.rmtree(aside)
        return deleted

    def path(self, step: int) -> Path:
        """Return the path of a step's checkpoint, which may not exist."""
        return self.directory / f"{step:04d}"

    def _clean(self) -> None:
        if not self.directory.is_dir():
            return
        for leftover in [p for p in self.directory.iterdir() if p.name.startswith(".tmp-")]:
            if leftover.name.startswith(".tmp-old-") and not self._replaced(leftover):
                continue
            log.warning("removing %s, the remains of an unfinished checkpoint", leftover)
            shutil.rmtree(leftover, ignore_errors=True)

    def _replaced(self, old: Path) -> bool:
        """Return whether a renamed checkpoint was replaced; if a kill prevented that, rename it
        back.
        """
        place = self.directory / old.name.split("-")[2]
        if place.exists():
            return True
        old.rename(place)
        log.warning("restored %s, whose replacement was not finished", place)
        return False


def template_for(given: str | None, checkpoint: Path | None) -> str | None:
    """Return the template to use instead of the base model's own: the given one, else the one in
    the run's checkpoint, else None.
    """
    file = checkpoint / CHAT_TEMPLATE if checkpoint else None
    trained = file.read_text(encoding="utf-8") if file and file.is_file() else None
    if given is not None and trained is not None and given != trained:
        log.warning(
            "chat_template is not the one that checkpoint %s was trained with; prompts change from "
            "this step on",
            checkpoint,
        )
    return trained if given is None else given


def check_fits(stored: StoredCheckpoint, identity: BaseIdentity, setup: SessionSetup) -> None:
    """Raise ConfigError for a checkpoint of another base model, or with other settings."""
    identity.check(stored.path, stored.manifest)
    setup.card.check(stored)


def has_rank_of(stored: StoredCheckpoint, policy: Policy) -> bool:
    """Return whether a checkpoint's adapter has the rank and alpha of the policy's."""
    was = stored.manifest.get("lora_rank"), stored.manifest.get("lora_alpha")
    return policy.lora is None or was == policy.lora


def read_fitting(stored: StoredCheckpoint, policy: Policy) -> dict[str, torch.Tensor]:
    """Return a checkpoint's parameters, of another rank and alpha in those of the policy."""
    tensors = policy.read(stored.path)
    if policy.lora is None or has_rank_of(stored, policy):
        return tensors
    was = int(stored.manifest["lora_rank"]), int(stored.manifest["lora_alpha"])
    log.warning(
        "%s has LoRA rank %d alpha %d, continued with rank %d alpha %d; its optimizer begins anew",
        stored.path,
        *was,
        *policy.lora,
    )
    return refitted(tensors, was, policy.lora, policy.trained())


def stored_weights(
    store: CheckpointStore, identity: BaseIdentity, setup: SessionSetup, policy: Policy, step: int
) -> StepWeights:
    """Return the weights of a checkpoint. A function, since a method would refer to the session and
    keep its memory in use as long as a request does.
    """
    found = store.read(step)
    check_fits(found, identity, setup)

    def merged() -> Mapping[str, torch.Tensor]:
        with setup.device_lock.hold(f"loading step {step}", LOCK_TIMEOUT_S):
            return policy.serving_of(read_fitting(found, policy))

    def write(directory: Path) -> None:
        for file in ADAPTER_FILES:
            shutil.copy2(found.path / file, directory / file)

    return StepWeights(merged=merged, write=write)


def _manifest(directory: Path, step: int, about: Mapping[str, Any]) -> dict[str, Any]:
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)}
        for p in sorted(directory.iterdir())
    }
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "created_at": datetime.now(UTC).isoformat(),
        **about,
        "files": files,
    }
    return {**manifest, DIGEST: _digest(manifest)}


def _digest(manifest: Mapping[str, Any]) -> str:
    entries = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(path: Path) -> Path:
    candidate, n = path, 1
    while candidate.exists():
        candidate, n = path.with_name(f"{path.name}-{n}"), n + 1
    return candidate
