"""Checkpoints of training runs on disk, and their tinker:// paths."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from art_core.base.files import read_json, replace_json
from art_core.endpoint.errors import RequestError, shown

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
MANIFEST = "checkpoint.json"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
_RUN = re.compile(r"[A-Za-z0-9][\w-]{0,99}:train:[0-9]{1,9}", re.ASCII)


@attrs.frozen
class TinkerPath:
    """Where a checkpoint lies: `tinker://<run>/<kind>/<name>`."""

    run: str
    kind: str
    name: str

    @classmethod
    def parse(cls, text: Any) -> TinkerPath:
        """Return a path; RequestError for another text."""
        parts = text.removeprefix("tinker://").split("/") if isinstance(text, str) else []
        if len(parts) != 3 or parts[1] not in KINDS or not text.startswith("tinker://"):
            raise RequestError(
                422, f"a checkpoint is tinker://<run>/<kind>/<name>, got {shown(text)}"
            )
        return cls(checked_run(parts[0]), parts[1], checked("name", parts[2]))

    def __str__(self) -> str:
        return f"tinker://{self.run}/{self.kind}/{self.name}"


def checked(what: str, name: Any) -> str:
    """Return a name that is safe as that of a file; RequestError for another."""
    if isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name:
        return name
    raise RequestError(
        422,
        f"{what} must be letters, digits, '.', '-' and '_', at most 128 of them, beginning with a "
        f"letter or digit; got {shown(name)}",
    )


def checked_run(name: Any) -> str:
    """Return the id of a run, `<session>:train:<number>`; RequestError for another text."""
    if isinstance(name, str) and _RUN.fullmatch(name):
        return name
    raise RequestError(404, f"there is no training run {shown(name)}")


def folder(run: str) -> str:
    """Return the name of a run's folder."""
    return run.replace(":", ".")


def now() -> dt.datetime:
    """Return the current time in UTC."""
    return dt.datetime.now(dt.UTC)


@attrs.frozen
class Checkpoints:
    """The checkpoints of all runs, each in `<directory>/<run>/<kind>/<name>`, whole or absent."""

    directory: Path

    def place(self, path: TinkerPath) -> Path:
        """Return the directory of a checkpoint."""
        return self.directory / folder(path.run) / path.kind / path.name

    def write(
        self,
        path: TinkerPath,
        manifest: Mapping[str, Any],
        fill: Callable[[Path], None],
        *,
        ttl_s: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a checkpoint whose files `fill` writes; RequestError (409) for a name that is
        taken.
        """
        place = self.place(path)
        if place.exists() and not overwrite:
            raise RequestError(409, f"{path} exists; choose another name, or give overwrite=True")
        aside = place.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        aside.mkdir(parents=True)
        try:
            fill(aside)
            made = {"time": now().isoformat(), "expires_at": _end(ttl_s)}
            replace_json(aside / MANIFEST, {**manifest, **made})
            if place.exists():
                shutil.rmtree(place)
            aside.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def read(self, path: TinkerPath) -> tuple[Path, dict[str, Any]]:
        """Return a checkpoint's directory and manifest; RequestError (404) if there is none."""
        found = read_json(self.place(path) / MANIFEST)
        if not found or _is_over(found):
            raise RequestError(404, f"there is no checkpoint {path}; it may have expired")
        return self.place(path), found

    def runs(self) -> list[str]:
        """Return the runs of this and of earlier servers, the newest first."""
        names = (path.name.replace(".", ":") for path in self.directory.glob("*"))
        return sorted(filter(_RUN.fullmatch, names), reverse=True)

    def of(self, run: str) -> list[dict[str, Any]]:
        """Return the checkpoints of a run as the SDK describes them, oldest first."""
        found = [self._described(path, manifest) for path, manifest in self._all(run)]
        return sorted(found, key=lambda each: str(each["time"]))

    def delete(self, path: TinkerPath) -> None:
        """Delete a checkpoint; RequestError (404) if there is none."""
        place, _ = self.read(path)
        shutil.rmtree(place)

    def set_ttl(self, path: TinkerPath, ttl_s: int | None) -> None:
        """Set how long a checkpoint stays from now on; None for ever."""
        place, manifest = self.read(path)
        replace_json(place / MANIFEST, {**manifest, "expires_at": _end(ttl_s)})

    def sweep(self) -> None:
        """Delete the checkpoints whose time is over."""
        for run in self.runs():
            for path, manifest in list(self._all(run)):
                if _is_over(manifest):
                    shutil.rmtree(self.place(path), ignore_errors=True)

    def _all(self, run: str) -> Iterator[tuple[TinkerPath, dict[str, Any]]]:
        for kind in KINDS:
            for file in (self.directory / folder(run) / kind).glob(f"[!.]*/{MANIFEST}"):
                yield TinkerPath(run, kind, file.parent.name), read_json(file)

    def _described(self, path: TinkerPath, manifest: Mapping[str, Any]) -> dict[str, Any]:
        files = self.place(path).iterdir()
        return {
            "checkpoint_id": f"{path.kind}/{path.name}",
            "checkpoint_type": KINDS[path.kind],
            "time": manifest["time"],
            "tinker_path": str(path),
            "size_bytes": sum(file.stat().st_size for file in files),
            "user_metadata": manifest.get("user_metadata"),
            "expires_at": manifest.get("expires_at"),
        }


def _end(ttl_s: int | None) -> str | None:
    return None if ttl_s is None else (now() + dt.timedelta(seconds=ttl_s)).isoformat()


def _is_over(manifest: Mapping[str, Any]) -> bool:
    end = manifest.get("expires_at")
    return end is not None and dt.datetime.fromisoformat(end) < now()
