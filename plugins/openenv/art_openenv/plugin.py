"""The hook of art-openenv: servers named in `OPENENV_SERVERS` are environments of `art env`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import art_core as art

VARIABLE = "OPENENV_SERVERS"


@art.hookimpl
def art_environments() -> Sequence[art.EnvironmentSpec]:
    """Offer an environment `openenv/NAME` for each NAME=URL in `OPENENV_SERVERS`."""
    named = [text.partition("=") for text in os.environ.get(VARIABLE, "").split(",") if text]
    return [
        art.EnvironmentSpec(
            name=f"openenv/{name.strip()}",
            target=partial(_environment, url.strip()),
            summary=f"the OpenEnv server {url.strip()}",
            scenarios=({"id": "0"},),
            modules=("openenv",),
        )
        for name, _, url in named
    ]


def _environment(url: str) -> Any:
    from art_openenv.environment import OpenEnvEnvironment

    return OpenEnvEnvironment(url)
