"""Names that clients choose: what a model and its base model may be called."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from art_core.base.errors import unknown
from art_core.endpoint.errors import shown
from art_serverless.protocol import Address
from art_serverless.server.errors import RefusedError

ENTITY = "local"
OWN_FILES = "serve."
"""What lies beside the entities' directories: serve.sqlite, serve.key, serve.lock."""
_NAME = re.compile(r"[^\W_][\w.-]{0,127}", re.ASCII)
_BASE_MODEL = re.compile(r"[^\W_][\w.-]{0,127}(/[^\W_][\w.-]{0,127})?", re.ASCII)


def checked_address(given: Mapping[str, Any]) -> Address:
    """Return a model's address; RefusedError for a name that could leave the server's directory, or
    be a file of the server's own.
    """
    entity = _name("entity", given.get("entity") or ENTITY)
    if entity.lower().startswith(OWN_FILES):
        raise RefusedError(
            422,
            f"entity can't begin with {OWN_FILES!r}, as the server's own files do: {shown(entity)}",
            "entity",
        )
    return Address(
        entity=entity,
        project=_name("project", given.get("project")),
        name=_name("name", given.get("name")),
    )


def _name(field: str, value: Any) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value) and ".." not in value:
        return value
    raise RefusedError(
        422,
        f"{field} must be letters, digits, '.', '-' and '_', beginning with a letter or digit, "
        f"at most 128 of them; got {shown(value)}",
        field,
    )


def checked_base_model(given: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Return the base model's name; RefusedError for a path, and for one that is not offered."""
    value = given.get("base_model")
    if isinstance(value, str) and value in known:
        return value
    if known:
        raise RefusedError(422, unknown("base model", shown(value).strip("'"), known), "base_model")
    if isinstance(value, str) and _BASE_MODEL.fullmatch(value) and ".." not in value:
        check_no_path(value)
        return value
    raise _no_name(value)


def check_no_path(base_model: str) -> None:
    """Raise RefusedError for a base model that a client named and that exists as a file or a
    directory here: a backend would load it from there.
    """
    if os.path.lexists(base_model):
        raise _no_name(base_model)


def _no_name(value: Any) -> RefusedError:
    return RefusedError(
        422,
        f"base_model must be a name such as 'Qwen/Qwen3-0.6B', no path; got {shown(value)}",
        "base_model",
    )
