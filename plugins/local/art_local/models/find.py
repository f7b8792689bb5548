"""Base models: from what the user named to a directory with a config, a tokenizer and
safetensors.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

from art_core import BaseModel
from art_core.base.errors import BackendError, ConfigError
from art_core.base.progress import line_progress
from art_local.models.packaged import PACKAGED, convert_into

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*", "*.bin", "*.pt", "*.pth"]
HUB_TIMEOUT_S = 4.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def cache_directory() -> Path:
    """Return where converted models are kept: `ART_CACHE`, else `art` in the user's cache
    directory.
    """
    if "ART_CACHE" in os.environ:
        return Path(os.environ["ART_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "art"


def resolve_base_model(
    name: str | os.PathLike[str], *, cache_dir: Path | None = None, progress: bool = True
) -> Path:
    """Return a directory that holds a base model, fetching it when it is not here yet.

    `name` is a local directory or a model hub id. In order: the directory, the hub's local cache,
    our cache, the hub, and for the models in `PACKAGED` the Python package that carries them. Only
    safetensors are accepted: pickled weights can run code.

    Raises ConfigError for a name that is neither or a directory that lacks something, BackendError
    when it cannot be fetched.
    """
    given = os.fspath(name)
    local = Path(given).expanduser()
    if local.is_dir():
        return checked(local)
    if local.is_absolute() or given.startswith((".", "~")) or not HUB_ID.fullmatch(given):
        raise ConfigError(
            f"no base model at {given!r}: there is no such directory",
            "Give a directory with config.json, tokenizer and safetensors, or a model hub id like "
            f"{next(iter(PACKAGED))!r}.",
        )
    packaged = PACKAGED.get(given)
    converted = (cache_dir or cache_directory()) / "models" / given.replace("/", "--")
    found = from_hub_cache(given) or (
        converted if packaged and problem_with(converted) is None else None
    )
    if found is not None:
        return found
    if hub_answers():
        try:
            return from_hub(given, progress=progress)
        except BackendError:
            if packaged is None:
                raise
    elif packaged is None:
        raise BackendError(
            f"base model {given!r} is not on this machine and the model hub does not "
            f"answer within {HUB_TIMEOUT_S} s",
            "Go online, set HF_ENDPOINT to a mirror, give a local directory, or use "
            f"{' or '.join(map(repr, PACKAGED))}, which also comes as a Python package.",
        )
    convert_into(packaged, converted, progress=progress, whole=lambda d: problem_with(d) is None)
    return checked(converted)


def problem_with(directory: Path) -> str | None:
    """Say what a model directory lacks; None when it is whole."""
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
    """Return a model directory; ConfigError says what it lacks."""
    problem = problem_with(directory)
    if problem is not None:
        raise ConfigError(
            f"{directory} is not a base model: {problem}",
            "It needs config.json, tokenizer files and *.safetensors "
            "(model.save_pretrained(...) and tokenizer.save_pretrained(...) write them).",
        )
    return directory.resolve()


def from_hub_cache(name: str) -> Path | None:
    """Return the hub's local copy of a model if it is whole."""
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
    """Tell within `timeout_s` whether the model hub can be reached; name look-ups that hang
    included.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            answered.append(error.code < 500)
        except (OSError, ValueError):
            return
        else:
            answered.append(True)

    thread = threading.Thread(target=ask, name="art-hub-probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return bool(answered and answered[0])


class LocalCatalog:
    """The base models that the local backend knows by name: for `art models`."""

    def list(self) -> list[BaseModel]:
        """Return the models that come as Python packages, with where they lie once they are
        here.
        """
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
