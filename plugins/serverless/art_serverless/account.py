"""The service's address and key: from the options, else from the environment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from art_core import ConfigError
from art_serverless.protocol import DEFAULT_URL


def service_url(given: str | None) -> str:
    """Return the service's URL; ConfigError if it is not an http(s) URL."""
    url = (given or os.environ.get("ART_BASE_URL") or DEFAULT_URL).rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"base_url must be an http(s) URL, got {url!r}")
    return url


def service_key(url: str, given: str | None) -> str:
    """Return the key for a URL. W&B's key is sent to W&B only.

    Raises ConfigError if there is no key.
    """
    of_wandb = f".{urlsplit(url).hostname}".endswith(".wandb.ai")
    name = "WANDB_API_KEY" if of_wandb else "ART_API_KEY"
    key = given or os.environ.get(name)
    if not key:
        raise ConfigError(
            f"no API key for {url}",
            f"Give api_key=, or set {name}; `art serve` prints the file of its key.",
        )
    return key
