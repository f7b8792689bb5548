"""The options of a step in a file: losses and advantages of your own by their names or paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from art_core.base.errors import ConfigError
from art_core.rl.advantages import AdvantageSpec
from art_core.rl.losses import LossSpec

_OBJECT = re.compile(r"(LossSpec|LossPreset|AdvantageSpec)\(name='([^']*)'")


def stored_options(
    options: Mapping[str, Any],
    losses: Mapping[str, LossSpec],
    advantages: Mapping[str, AdvantageSpec],
) -> dict[str, Any]:
    """Return options with specs replaced by the name under which a plugin offers them, or the
    "module:attribute" that they are. A spec that has neither stays as it is, and a file holds its
    text.
    """
    offered: list[LossSpec | AdvantageSpec] = [*losses.values(), *advantages.values()]
    found = dict(options)
    for name, value in options.items():
        if isinstance(value, LossSpec | AdvantageSpec):
            found[name] = value.name if value in offered else import_path(value) or value
    return found


def import_path(spec: LossSpec | AdvantageSpec) -> str | None:
    """Return the "module:attribute" that imports a spec, None if there is none."""
    if ":" in spec.name:
        return spec.name
    module = sys.modules.get(getattr(spec.create, "__module__", ""))
    if module is None or module.__name__ == "__main__":
        return None
    held = (name for name, value in vars(module).items() if value is spec)
    attribute = next(held, None)
    return attribute and f"{module.__name__}:{attribute}"


def check_restored(options: Mapping[str, Any], step: str) -> None:
    """Raise ConfigError for an option that was an object without a name or path, so that only its
    text was stored.
    """
    for name, value in options.items():
        found = _OBJECT.match(value) if isinstance(value, str) else None
        if found:
            raise ConfigError(
                f"{step} was trained with {name}={found[1]} {found[2]!r}, an object that cannot be "
                "imported by a name, so the run has no more of it than its text",
                f"Give one: --set {name}=module:attribute, or in Python {name}=...",
            )
