"""Checks of the names that clients choose for models and base models."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from art_core.base.errors import unknown
from art_core.endpoint.errors import RequestError, shown
from art_serverless.protocol import Address

ENTITY = "local"
OWN_FILES = "serve."
"""Beginning of the server's own files, which lie beside the directories of the entities."""
_NAME = re.compile(r"[^\W_][\w.-]{0,127}", re.ASCII)
_BASE_MODEL = re.compile(r"[^\W_][\w.-]{0,127}(/[^\W_][\w.-]{0,127})?", re.ASCII)


def checked_address(given: Mapping[str, Any]) -> Address:
    """Return a model's address; RequestError for a name that could be a path out of the server's
    directory, or one of the server's own files.
    """
    entity = _name("entity", given.get("entity") or ENTITY)
    if entity.lower().startswith(OWN_FILES):
        raise RequestError(
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
    raise RequestError(
        422,
        f"{field} must be letters, digits, '.', '-' and '_', beginning with a letter or digit, "
        f"at most 128 of them; got {shown(value)}",
        field,
    )


def checked_base_model(given: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Return the name of the base model; RequestError for a path and for an unknown name."""
    value = given.get("base_model")
    if isinstance(value, str) and value in known:
        return value
    if known:
        raise RequestError(422, unknown("base model", shown(value).strip("'"), known), "base_model")
    if isinstance(value, str) and _BASE_MODEL.fullmatch(value) and ".." not in value:
        check_no_path(value)
        return value
    raise _not_a_name(value)


def check_no_path(base_model: str) -> None:
    """Raise RequestError if the name of a base model is also a file or a directory here: the
    backend would load it from there.
    """
    if os.path.lexists(base_model):
        raise _not_a_name(base_model)


def _not_a_name(value: Any) -> RequestError:
    return RequestError(
        422,
        f"base_model must be a name such as 'Qwen/Qwen3-0.6B', not a path; got {shown(value)}",
        "base_model",
    )
