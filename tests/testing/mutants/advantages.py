"""Right advantages, and broken ones that differ from them by one fault each."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import pytest
from mutants.runner import contracts_of

import art_core as art
from art_core.testing.advantages import AdvantageContract


class RightAdvantages:
    """Rewards minus the group's middle, each divided by the largest distance from it."""

    def __init__(self):
        self.calls = itertools.count()

    @art.hookimpl
    def art_advantages(self):
        return [art.AdvantageSpec(name="middling", create=lambda: self.advantages)]

    def rewards(self, trajectories):
        return [t.total_reward for t in trajectories]

    def advantages(self, trajectories):
        return self.of_rewards(self.rewards(trajectories))

    def of_rewards(self, rewards):
        if not rewards:
            return []
        middle = (min(rewards) + max(rewards)) / 2
        reach = max(rewards) - middle
        return [(reward - middle) / reach if reach else 0.0 for reward in rewards]


class TestRight(AdvantageContract):
    advantages: ClassVar = RightAdvantages
    examples = (((0.0, 1.0, 4.0), (-1.0, -0.5, 1.0)),)

    @pytest.fixture
    def plugin(self):
        return self.advantages()


class HalvesThem(RightAdvantages):
    """Its advantages are half of what they should be."""

    def of_rewards(self, rewards):
        return [value / 2 for value in super().of_rewards(rewards)]


class ShowsNoValue(RightAdvantages):
    """No example is given."""


class GivesOneForTheGroup(RightAdvantages):
    """It returns one number for a whole group."""

    def of_rewards(self, rewards):
        return super().of_rewards(rewards)[:1]


class NeedsAnAttempt(RightAdvantages):
    """It raises for a group without attempts."""

    def of_rewards(self, rewards):
        if not rewards:
            raise ValueError("no attempts")
        return super().of_rewards(rewards)


class ForgetsOneOfThree(RightAdvantages):
    """It leaves out the last of an odd number of attempts."""

    def of_rewards(self, rewards):
        found = super().of_rewards(rewards)
        return found[:-1] if len(found) % 2 else found


class TakesTwoTurns(RightAdvantages):
    """It returns two advantages for each attempt of several turns."""

    def advantages(self, trajectories):
        found = super().advantages(trajectories)
        pairs = zip(trajectories, found, strict=True)
        return [[a, a] if t.num_turns() > 1 else a for t, a in pairs]


class NeedsRewardsOfTurns(RightAdvantages):
    """It raises for an attempt of several turns without rewards of turns."""

    def rewards(self, trajectories):
        if any(t.num_turns() > 1 and not t.turn_rewards for t in trajectories):
            raise ValueError("no rewards of turns")
        return super().rewards(trajectories)


class NeedsAChoice(RightAdvantages):
    """It divides by the number of choices of an attempt."""

    def rewards(self, trajectories):
        if not all(t.num_turns() for t in trajectories):
            raise ZeroDivisionError("no choices")
        return super().rewards(trajectories)


class Overflows(RightAdvantages):
    """It is infinite for large rewards."""

    def of_rewards(self, rewards):
        found = super().of_rewards(rewards)
        return [math.inf if abs(r) > 1e6 else a for r, a in zip(rewards, found, strict=True)]


class Explodes(RightAdvantages):
    """It is beyond every 32-bit float for large rewards."""

    def of_rewards(self, rewards):
        found = super().of_rewards(rewards)
        return [1e39 if abs(r) > 1e6 else a for r, a in zip(rewards, found, strict=True)]


class PrefersTheFirst(RightAdvantages):
    """It compares attempts with the first one."""

    def of_rewards(self, rewards):
        return (
            [reward - rewards[0] for reward in rewards]
            if len(rewards) > 3
            else (super().of_rewards(rewards))
        )


class WeighsByPlace(RightAdvantages):
    """Attempts of several turns weigh by their place in the group."""

    def advantages(self, trajectories):
        found = super().advantages(trajectories)
        if all(t.num_turns() == 1 for t in trajectories):
            return found
        return [value * (place + 1) for place, value in enumerate(found)]


class ComparesWithZero(RightAdvantages):
    """Its advantages of equal rewards are those rewards."""

    def of_rewards(self, rewards):
        return super().of_rewards(rewards) if len(set(rewards)) > 1 else list(rewards)


class AmplifiesRounding(RightAdvantages):
    """It divides the rounding of equal rewards by their rounded spread."""

    def of_rewards(self, rewards):
        if len(rewards) < 2 or len(set(rewards)) > 1:
            return super().of_rewards(rewards)
        mean = sum(rewards) / len(rewards)
        spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
        return [(r - mean) / spread if spread else 0.0 for r in rewards]


class TurnsTheSign(RightAdvantages):
    """Where there are more than three attempts, the worst has the highest advantage."""

    def of_rewards(self, rewards):
        found = super().of_rewards(rewards)
        return [-value for value in found] if len(found) > 3 else found


class SeesNoDifference(RightAdvantages):
    """All attempts of a pair have the same advantage."""

    def of_rewards(self, rewards):
        return [0.0, 0.0] if len(rewards) == 2 else super().of_rewards(rewards)


class WritesIntoTheAttempts(RightAdvantages):
    """It writes its advantages into the attempts."""

    def advantages(self, trajectories):
        found = super().advantages(trajectories)
        for trajectory, value in zip(trajectories, found, strict=True):
            trajectory.metrics["advantage"] = value
        return found


class ReplacesTheRewards(RightAdvantages):
    """It replaces the rewards by its advantages."""

    def advantages(self, trajectories):
        found = super().advantages(trajectories)
        for trajectory, value in zip(trajectories, found, strict=True):
            trajectory.reward = value
        return found


class CountsItsCalls(RightAdvantages):
    """Its advantages shrink with each call."""

    def of_rewards(self, rewards):
        share = 1 / (1 + next(self.calls))
        return [value * share for value in super().of_rewards(rewards)]


class RemembersTheBest(RightAdvantages):
    """It compares attempts with the best of all groups so far."""

    best = -math.inf

    def of_rewards(self, rewards):
        if len(rewards) == 3:
            return super().of_rewards(rewards)
        self.best = max([self.best, *rewards])
        return super().of_rewards([*rewards, self.best])[:-1]


class TeachesPairsOnly(RightAdvantages):
    """Groups of more than four attempts teach nothing."""

    def of_rewards(self, rewards):
        return [0.0] * len(rewards) if len(rewards) > 4 else super().of_rewards(rewards)


class MisspellsTheHook:
    """Its hook is not the core's."""

    @art.hookimpl
    def art_losses(self):
        return []


VALUES = "test_it_gives_the_advantages_of_the_examples"
EACH = "test_each_attempt_has_an_advantage"
TURNS = "test_attempts_may_have_several_turns"
FINITE = "test_advantages_are_finite"
ORDER = "test_the_order_of_the_attempts_does_not_matter"
FLAT = "test_attempts_with_equal_rewards_have_no_advantage"
BETTER = "test_a_better_attempt_has_no_lower_advantage"
LEFT = "test_trajectories_are_left_as_they_are"
SAME = "test_the_same_group_has_the_same_advantages"
FAULTS = {
    HalvesThem: VALUES,
    ShowsNoValue: VALUES,
    GivesOneForTheGroup: EACH,
    NeedsAnAttempt: EACH,
    ForgetsOneOfThree: EACH,
    TakesTwoTurns: TURNS,
    NeedsRewardsOfTurns: TURNS,
    NeedsAChoice: "test_attempts_may_be_poor_in_data",
    Overflows: FINITE,
    Explodes: FINITE,
    PrefersTheFirst: ORDER,
    WeighsByPlace: ORDER,
    ComparesWithZero: FLAT,
    AmplifiesRounding: FLAT,
    TurnsTheSign: BETTER,
    SeesNoDifference: BETTER,
    WritesIntoTheAttempts: LEFT,
    ReplacesTheRewards: LEFT,
    CountsItsCalls: SAME,
    RemembersTheBest: SAME,
    TeachesPairsOnly: "test_a_step_trains_with_it",
    MisspellsTheHook: "test_it_has_the_hook",
}
globals().update(contracts_of(TestRight, FAULTS, "advantages"))
TestShowsNoValue.examples = ()  # noqa: F821
