"""The core's own rules."""

from __future__ import annotations

from art_core.checks.changes import GROWTHS, val_apart
from art_core.checks.finding import CheckSpec
from art_core.checks.levels import (
    LEVELS,
    dead_groups_right,
    dead_groups_wrong,
    no_learning_rate,
)
from art_core.checks.shares import one_component, outdated_prices

RULES = (
    CheckSpec(
        name="dead-groups-right",
        check=dead_groups_right,
        summary="nine tenths of the groups have no spread, and the reward is high",
    ),
    CheckSpec(
        name="dead-groups-wrong",
        check=dead_groups_wrong,
        summary="nine tenths of the groups have no spread, and the reward is low",
    ),
    CheckSpec(
        name="no-learning-rate",
        check=no_learning_rate,
        summary="the learning rate is below 1e-8, or a 1,000th of the highest",
    ),
    CheckSpec(
        name="val-apart",
        check=val_apart,
        summary="the reward rises while val/reward is flat or falls",
    ),
    CheckSpec(
        name="one-component",
        check=one_component,
        summary="one part has 98 % of the reward's variance, and the others do not move",
    ),
    CheckSpec(
        name="outdated-prices",
        check=outdated_prices,
        summary="a fifth of the dollars is booked at prices more than 60 days old",
    ),
    *(rule.spec() for rule in (*LEVELS, *GROWTHS)),
)
"""Each has its limits in its module."""
