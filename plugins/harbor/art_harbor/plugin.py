"""The hooks of art-harbor: folders in `HARBOR_TASKS` are environments of `art env`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import art_core as art

VARIABLE, SANDBOX = "HARBOR_TASKS", "HARBOR_SANDBOX"


@art.hookimpl
def art_environments() -> Sequence[art.EnvironmentSpec]:
    """Offer an environment `harbor/NAME` for each NAME=FOLDER in `HARBOR_TASKS`."""
    named = [text.partition("=") for text in os.environ.get(VARIABLE, "").split(",") if text]
    return [
        art.EnvironmentSpec(
            name=f"harbor/{name.strip()}",
            target=_environment,
            summary=f"the Harbor tasks in {folder.strip()}",
            scenarios=partial(_scenarios, folder.strip()),
        )
        for name, _, folder in named
    ]


def _environment() -> Any:
    from art_harbor.environment import HarborEnvironment

    return HarborEnvironment(sandbox=os.environ.get(SANDBOX, "docker"))


def _scenarios(folder: str) -> list[dict[str, Any]]:
    from art_harbor.scenarios import harbor_scenarios

    return harbor_scenarios(folder)
