"""Rewards: functions of an answer, a weighted sum of them, and language models as judges.

Every function returns a float, or raises `RewardError` when it cannot decide. An attempt whose
reward could not be computed is a failure of its group, never an attempt worth 0.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_core.rewards.calibration import Calibration, LabelledPair, calibrate, cheapest
    from art_core.rewards.code import passes_tests
    from art_core.rewards.combined import reward
    from art_core.rewards.judge import Judge, preference, rubric_score
    from art_core.rewards.ruler import DEFAULT_RUBRIC, TrajectoryScore, ruler_score_group
    from art_core.rewards.text import (
        exact_match,
        length_penalty,
        matches_pattern,
        matches_schema,
        maths_match,
        normalised_match,
        number_match,
        repetition_penalty,
    )
    from art_core.rewards.tools import tool_called

_HOME = {
    "calibration": ("Calibration", "LabelledPair", "calibrate", "cheapest"),
    "code": ("passes_tests",),
    "combined": ("reward",),
    "judge": ("Judge", "preference", "rubric_score"),
    "ruler": ("DEFAULT_RUBRIC", "TrajectoryScore", "ruler_score_group"),
    "text": (
        "exact_match",
        "length_penalty",
        "matches_pattern",
        "matches_schema",
        "maths_match",
        "normalised_match",
        "number_match",
        "repetition_penalty",
    ),
    "tools": ("tool_called",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "DEFAULT_RUBRIC",
    "Calibration",
    "Judge",
    "LabelledPair",
    "TrajectoryScore",
    "calibrate",
    "cheapest",
    "exact_match",
    "length_penalty",
    "matches_pattern",
    "matches_schema",
    "maths_match",
    "normalised_match",
    "number_match",
    "passes_tests",
    "preference",
    "repetition_penalty",
    "reward",
    "rubric_score",
    "ruler_score_group",
    "tool_called",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'art_core.rewards' has no attribute {name!r}")
    return getattr(import_module(f"art_core.rewards.{_MODULE_OF[name]}"), name)
