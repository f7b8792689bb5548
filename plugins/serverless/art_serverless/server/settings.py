"""The settings of `art serve`, from its command line."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from art_core import ConfigError
from art_core.endpoint.listener import check_tls
from art_serverless.server.keys import Keys


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of the server; see `art serve --help`."""

    backend: str
    options: Mapping[str, Any]
    directory: Path
    host: str
    port: int
    keys: Keys
    certfile: str | None = None
    keyfile: str | None = None
    base_models: Mapping[str, str] = attrs.field(factory=dict)
    idle_s: float = 1800.0
    max_body_bytes: int = 64 << 20
    grace_s: float = 60.0
    max_models: int = 4
    session_s: float = 300.0


def settings_of(arguments: argparse.Namespace, directory: Path, keys: Keys) -> Settings:
    """Return the settings of a command line; ConfigError for values that are not valid."""
    check_tls(arguments.certfile, arguments.keyfile)
    return Settings(
        backend=arguments.backend,
        options=options_of(arguments.option),
        directory=directory,
        host=arguments.host,
        port=arguments.port,
        keys=keys,
        certfile=arguments.certfile,
        keyfile=arguments.keyfile,
        base_models=dict(_pair(item) for item in arguments.base_model),
        idle_s=arguments.idle_minutes * 60,
        max_body_bytes=int(arguments.max_body_mb * (1 << 20)),
        grace_s=arguments.grace_s,
        max_models=arguments.max_models,
    )


def options_of(given: Iterable[str]) -> dict[str, Any]:
    """Return the options in `key=value` texts; a value is a Python literal, else a string."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"an option is KEY=VALUE, got {text!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _pair(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name:
        raise ConfigError(f"a base model is NAME or NAME=PATH, got {text!r}")
    return name, path or name
