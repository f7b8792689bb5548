"""vLLM's virtual environment, separate because its pinned packages conflict with the trainer's."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Literal

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import read_json
from art_local.models import cache_directory

log = logging.getLogger("art_local")
Variant = Literal["cpu", "cuda"]
MARKER = "art-engine.json"
"""Written last: the installation of an environment without it was interrupted."""
CPU_PLUGIN = Path(__file__).parent / "cpu_plugin"
"""art-local's own package in an environment for CPU."""


@attrs.frozen(kw_only=True)
class Environment:
    """A complete environment: its path, vLLM version and kind of device."""

    path: Path
    version: str
    variant: Variant
    is_current: bool = True
    """False if art-local has a newer plugin for it."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return interpreter(self.path)


def interpreter(path: Path) -> Path:
    """Return the interpreter of an environment."""
    return path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def engines_directory() -> Path:
    """Return the directory of engines: `ART_ENGINES`, else `engines` in the cache directory."""
    if "ART_ENGINES" in os.environ:
        return Path(os.environ["ART_ENGINES"]).expanduser()
    return cache_directory() / "engines"


def environment_path() -> Path:
    """Return the path of vLLM's environment, which may not exist."""
    return engines_directory() / "vllm"


def installed() -> Environment | None:
    """Return vLLM's environment if it is complete."""
    path = environment_path()
    marker = read_json(path / MARKER)
    if not marker or not interpreter(path).exists():
        return None
    variant: Variant = marker["variant"]
    current = variant == "cuda" or marker.get("own_parts") == own_parts()
    return Environment(path=path, version=marker["version"], variant=variant, is_current=current)


def own_parts() -> str:
    """Return a hash of art-local's own package for the environment, to detect an outdated one."""
    digest = hashlib.sha256()
    for file in sorted(CPU_PLUGIN.rglob("*")):
        if file.suffix in {".py", ".toml"}:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def required(device_type: str) -> Environment:
    """Return vLLM's environment for a kind of device; ConfigError if it is not installed."""
    found, wanted = installed(), "cuda" if device_type == "cuda" else "cpu"
    if found is None:
        raise ConfigError(
            f"engine 'vllm' is not installed in {environment_path()}",
            "Run `art engines install vllm` once, or use engine='transformers'.",
        )
    if found.variant != wanted:
        raise ConfigError(
            f"the vLLM in {found.path} is built for {found.variant}, but the engine runs on "
            f"{device_type!r}",
            f"Run `art engines remove vllm` and `art engines install vllm` on a {wanted} machine, "
            "or choose another engine_device.",
        )
    if not found.is_current:
        log.warning(
            "the vLLM in %s has an older art-vllm-cpu than this art-local: "
            "`art engines install vllm` updates it",
            found.path,
        )
    return found
