"""The scenarios that a run is trained on, so that a resume notices when they have changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json
from art_core.model.sft_plan import DIGEST, data_differences

log = logging.getLogger("art_core")
FILE = "scenarios.json"
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


def check_scenarios(
    run_dir: Path, run: str, step: int, scenarios: Iterable[Any], *, accept_changes: bool
) -> None:
    """Record the scenarios of a run that is at a step, or compare them with those recorded.

    Raises ConfigError with the difference, or logs it if changes are accepted. Before the first
    step, and where none were recorded, nothing is compared.
    """
    now, file = [_digest(scenario) for scenario in scenarios], run_dir / FILE
    stored = read_json(file)
    before = stored.get("digests", now) if step else now
    differences = data_differences(before, now, "scenarios")
    if differences:
        text = f"{run} was trained up to step {step} on other scenarios: {'; '.join(differences)}"
        if not accept_changes:
            raise ConfigError(
                text,
                "Give those that it was begun with, or go on with the new ones by "
                "check_scenarios(..., accept_changes=True).",
            )
        log.warning("%s", text)
    if stored.get("digests") != now:
        replace_json(file, {"digests": now, "step": step})


def plain(scenario: Any) -> Any:
    """Return a scenario as JSON values; ConfigError for one that has none."""
    return orjson.loads(_json(scenario))


def _digest(scenario: Any) -> str:
    return hashlib.sha256(_json(scenario)).hexdigest()[:DIGEST]


def _json(scenario: Any) -> bytes:
    if attrs.has(type(scenario)):
        scenario = attrs.asdict(scenario)
    elif hasattr(scenario, "model_dump"):
        scenario = scenario.model_dump(mode="json")
    try:
        return orjson.dumps(scenario, option=_OPTIONS)
    except TypeError as error:
        raise ConfigError(
            f"scenarios are compared as JSON, and {scenario!r:.80} has none: {error}",
            "Give what they are made of: text, numbers, dicts, dataclasses.",
        ) from error
