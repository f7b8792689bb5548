"""The hooks of art-verifiers: installed environment packages are environments of `art env`."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import art_core as art

_OURS = "art-verifiers"
_ASKS = re.compile(r"verifiers(?![\w-])", re.IGNORECASE)


@art.hookimpl
def art_environments() -> Sequence[art.EnvironmentSpec]:
    """Offer an environment `verifiers/NAME` for each installed package that requires verifiers."""
    return [
        art.EnvironmentSpec(
            name=f"verifiers/{name}",
            target=partial(_rollout, name),
            summary=summary or "an environment of verifiers",
            scenarios=partial(_scenarios, name),
            modules=(name.replace("-", "_"),),
        )
        for name, summary in sorted(_installed())
    ]


def _installed() -> Iterator[tuple[str, str]]:
    """Yield name and summary of the packages that require verifiers."""
    for found in importlib.metadata.distributions():
        asked = [text for text in found.requires or () if _ASKS.match(text)]
        name = str(found.metadata["Name"]).lower()
        if any("extra ==" not in text for text in asked) and name != _OURS:
            yield name, str(found.metadata.json.get("summary") or "")[:120]


async def _rollout(name: str, model: Any, scenario: Mapping[str, Any]) -> art.Trajectory:
    trajectory: art.Trajectory = await _loaded(name)(model, scenario)
    return trajectory


@cache
def _loaded(name: str) -> Any:
    from art_verifiers.rollout import verifiers_rollout

    return verifiers_rollout(name)


def _scenarios(name: str) -> list[dict[str, Any]]:
    from art_verifiers.rollout import verifiers_scenarios

    return verifiers_scenarios(name, split="eval")
