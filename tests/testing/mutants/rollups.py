"""A right derived metric, and broken ones that differ from it by one fault each."""

from __future__ import annotations

import itertools
import math
import time
from typing import ClassVar

import pytest
from mutants.runner import contracts_of

import art_core as art
from art_core.testing.rollup import RollupContract


class RightRollup:
    """Derives one metric from a row and the run's totals."""

    @art.hookimpl
    def art_rollup(self, leaves, totals, split):
        return self.derived(leaves, totals, split)

    def derived(self, leaves, totals, split):
        spent = totals.get("costs/cum/all", 0.0)
        if split != "train" or "reward/mean" not in leaves or spent <= 0:
            return None
        return {"reward/per_dollar": leaves["reward/mean"] / spent}


class TestRight(RollupContract):
    rollup: ClassVar = RightRollup
    examples = (
        (
            "train",
            {"reward/mean": 0.5, "costs/gpu": 0.25},
            {"costs/cum/all": 2.0},
            {"reward/per_dollar": 0.25},
        ),
        ("train", {"reward/mean": 0.5}, {}, {}),
        ("val", {"val/reward": 0.5, "reward/mean": 0.5}, {"costs/cum/all": 2.0}, {}),
    )

    @pytest.fixture
    def plugin(self):
        return self.rollup()


class DerivesNothing(RightRollup):
    """It derives no metric."""

    def derived(self, leaves, totals, split):
        return None


class DividesByTheStep(RightRollup):
    """It divides by the step's costs, not by the run's."""

    def derived(self, leaves, totals, split):
        return super().derived(leaves, {"costs/cum/all": leaves.get("costs/gpu", 0.0)}, split)


class DerivesForEverySplit(RightRollup):
    """It derives its metric for splits that have none."""

    def derived(self, leaves, totals, split):
        return super().derived(leaves, totals, "train")


class DerivesMore(RightRollup):
    """It derives a metric that no example has."""

    def derived(self, leaves, totals, split):
        found = super().derived(leaves, totals, split)
        return found and found | {"reward/extra": 1.0}


class NeedsTheReward(RightRollup):
    """It raises for a row without the metric that it reads."""

    def derived(self, leaves, totals, split):
        return super().derived({"reward/mean": leaves["reward/mean"]}, totals, split)


class DividesByZero(RightRollup):
    """It raises for a row of zeros."""

    def derived(self, leaves, totals, split):
        if "loss/train" in leaves:
            leaves["reward/mean"] / leaves["loss/train"]
        return super().derived(leaves, totals, split)


class AnswersText(RightRollup):
    """A value is a text."""

    def derived(self, leaves, totals, split):
        return {"reward/per_dollar": "much"} if not leaves else None


class ChangesLeaves(RightRollup):
    """It writes into the leaves of the row."""

    def derived(self, leaves, totals, split):
        leaves["reward/seen"] = 1.0
        return super().derived(leaves, totals, split)


class ChangesTotals(RightRollup):
    """It takes a total out of the run's totals."""

    def derived(self, leaves, totals, split):
        spent = totals.pop("costs/cum/all", 0.0)
        return super().derived(leaves, {"costs/cum/all": spent}, split)


class AddsUp(RightRollup):
    """It adds up its own values over rows."""

    total = 0.0

    def derived(self, leaves, totals, split):
        self.total += leaves.get("reward/mean", 0.0)
        return super().derived({**leaves, "reward/mean": self.total}, totals, split)


class CountsItsCalls(RightRollup):
    """Its value depends on the number of calls."""

    def __init__(self):
        self.calls = itertools.count()

    def derived(self, leaves, totals, split):
        return super().derived({**leaves, "reward/mean": float(next(self.calls))}, totals, split)


class TakesTheFirst(RightRollup):
    """It reads the first leaf, whatever it is."""

    def derived(self, leaves, totals, split):
        first = next(iter(leaves.values()), 0.0)
        return super().derived({"reward/mean": first}, totals, split)


class ReplacesTheReward(RightRollup):
    """It changes a metric that was measured."""

    def derived(self, leaves, totals, split):
        return {"reward/mean": 1.0} if "reward/mean" in leaves else None


class AnswersInfinity(RightRollup):
    """It answers infinity where nothing was spent."""

    def derived(self, leaves, totals, split):
        return super().derived(leaves, totals, split) or {"reward/per_dollar": math.inf}


class AnswersNaN(RightRollup):
    """It answers NaN where there is no reward."""

    def derived(self, leaves, totals, split):
        return super().derived(leaves, totals, split) or {"reward/per_dollar": math.nan}


class InventsASection(RightRollup):
    """Its metric is in a section that no catalogue has."""

    def derived(self, leaves, totals, split):
        return {"nosection/per_dollar": 1.0} if totals else None


class BooksCosts(RightRollup):
    """It derives dollars beside those that were paid."""

    def derived(self, leaves, totals, split):
        return {"costs/per_step": 1.0} if totals else None


class KeepsATotal(RightRollup):
    """It derives a total, which the core adds up."""

    def derived(self, leaves, totals, split):
        return {"reward/cum/all": 1.0} if totals else None


class IsSlow(RightRollup):
    """It takes longer than a millisecond."""

    def derived(self, leaves, totals, split):
        time.sleep(0.002)
        return super().derived(leaves, totals, split)


class AnswersLate(RightRollup):
    """Its first answer is empty."""

    asked = False

    def derived(self, leaves, totals, split):
        self.asked, before = True, self.asked
        return super().derived(leaves, totals, split) if before else None


class ShowsNoValue(RightRollup):
    """No example has a derived value."""


class MisspellsTheHook:
    """Its hook is not the core's."""

    @art.hookimpl
    def art_sinks(self):
        return []


VALUES = "test_it_derives_the_values_of_the_examples"
KINDS = "test_rows_of_every_kind_are_answered"
SAME = "test_the_same_row_has_the_same_answer"
FINITE = "test_its_metrics_are_finite"
OWN = "test_its_metrics_are_neither_costs_nor_totals"
FAULTS = {
    DerivesNothing: VALUES,
    DividesByTheStep: VALUES,
    DerivesForEverySplit: VALUES,
    DerivesMore: VALUES,
    NeedsTheReward: KINDS,
    DividesByZero: KINDS,
    AnswersText: KINDS,
    ChangesLeaves: "test_rows_are_left_as_they_are",
    ChangesTotals: "test_it_only_reads",
    AddsUp: SAME,
    CountsItsCalls: SAME,
    TakesTheFirst: SAME,
    ReplacesTheReward: "test_its_metrics_are_new",
    AnswersInfinity: FINITE,
    AnswersNaN: FINITE,
    InventsASection: "test_its_metrics_have_a_section",
    BooksCosts: OWN,
    KeepsATotal: OWN,
    IsSlow: "test_it_takes_less_than_a_millisecond",
    AnswersLate: "test_its_metrics_are_in_the_rows_of_a_run",
    ShowsNoValue: "test_an_example_derives_something",
    MisspellsTheHook: "test_it_has_the_hook",
}
globals().update(contracts_of(TestRight, FAULTS, "rollup"))
TestShowsNoValue.examples = (("train", {}, {}, {}),)  # noqa: F821
