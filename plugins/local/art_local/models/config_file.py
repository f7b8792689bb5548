"""Find the config.json of a base model, whose weights may be elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from art_core.base.errors import BackendError, ConfigError
from art_local.models.find import HUB_ID, HUB_TIMEOUT_S, cache_directory, hub_answers
from art_local.models.packaged import PACKAGED

CONFIG = "config.json"


def find_config(name: str | os.PathLike[str]) -> Path:
    """Return a directory with the config.json of a base model.

    `name` is a directory, a config.json or a model hub id. A hub id is looked up in the hub's local
    cache and in ours; else only its config.json is fetched from the hub.

    Raises ConfigError if there is no such config, BackendError if it can't be fetched.
    """
    text = os.fspath(name)
    local = Path(text).expanduser()
    directory = local.parent if local.is_file() and local.name == CONFIG else local
    if (directory / CONFIG).is_file():
        return directory.resolve()
    if local.exists() or local.is_absolute() or not HUB_ID.fullmatch(text):
        raise ConfigError(
            f"no {CONFIG} at {text!r}",
            f"Give a directory with a {CONFIG}, the file, or a model hub id.",
        )
    converted = cache_directory() / "models" / text.replace("/", "--")
    if (converted / CONFIG).is_file():
        return converted
    return _hub_config(text)


def _hub_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, CONFIG)
    if isinstance(cached, str):
        return Path(cached).parent
    if not hub_answers():
        raise BackendError(
            f"the {CONFIG} of {name!r} is not on this machine and the model hub does not answer "
            f"within {HUB_TIMEOUT_S} s",
            f"Go online, give a directory with its {CONFIG}, or, for {next(iter(PACKAGED))!r}, run "
            "`art models pull` once.",
        )
    try:
        return Path(hf_hub_download(name, CONFIG, etag_timeout=10)).parent
    except (OSError, ValueError) as error:
        raise BackendError(
            f"the {CONFIG} of {name!r} could not be fetched from the model hub: "
            f"{type(error).__name__}: {error}",
            "Check the name; for a gated model accept its terms and set HF_TOKEN.",
        ) from error
