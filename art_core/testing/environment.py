"""The contract of environments. Subclass `EnvironmentContract`; give `scenarios`, `environment`."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from art_core.base.errors import RolloutFailure
from art_core.environments.environment import Environment
from art_core.testing.check import CheckReport
from art_core.testing.episodes import best_play, check_environment, played
from art_core.testing.reward import ScriptedModelsContract, no_fault
from art_core.testing.scripts import right_of
from art_core.testing.statements import Setting


class EnvironmentContract(ScriptedModelsContract):
    """The tests of an environment: scripted models play it, on this machine.

    Give the method `environment()`, which makes one; `broken_environment()`, which makes one whose
    infrastructure is down; `scenarios`; and their right turns, in the field `answer` or by
    `right_turns(scenario)`.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("scenarios", "what is played; two or more, with different right turns"),
        Setting(
            "answer", "the field of a scenario that holds its right answer, or a list of turns"
        ),
        Setting("max_usd", "US dollars that one attempt may cost"),
        Setting(
            "constant_is_right",
            "that one constant answer may earn the full reward",
            "a model that always gives the same answer is not looked for",
        ),
        Setting(
            "cannot_break",
            "that it needs nothing that could be down: no service, process or file",
            "failures of its infrastructure were not tried",
        ),
    )
    cannot_break: ClassVar[bool] = False

    def environment(self) -> Environment:
        """Make an environment, for one attempt."""
        raise AssertionError("give environment()")

    def broken_environment(self) -> Environment:
        """Make an environment whose service, process or file is missing."""
        raise AssertionError("give broken_environment(), or state cannot_break")

    def right_turns(self, scenario: Any) -> Any:
        """Return the right turns: a text, a list of texts and messages, or a function of the
        conversation that returns the next turn.
        """
        return scenario.get(self.answer)

    async def _tried(self) -> CheckReport:
        return await check_environment(self.environment, self.scenarios, answer=self.right_turns)

    def test_the_right_turns_beat_all_others(self, report: CheckReport) -> None:
        """Silence, echoes, lists, denials and words to the judge get less."""
        no_fault(report, "beaten")

    def test_a_scenario_begins_in_the_same_way_each_time(self, report: CheckReport) -> None:
        """Attempts of a group are compared, so that they must have the same task."""
        no_fault(report, "reset")

    def test_the_same_turns_have_the_same_consequences(self, report: CheckReport) -> None:
        """What is random follows from the scenario."""
        no_fault(report, "not repeatable")

    def test_an_episode_leaves_nothing_for_the_next(self, report: CheckReport) -> None:
        """Scenarios do not depend on those that were played before."""
        no_fault(report, "not independent")

    def test_episodes_at_the_same_time_do_not_share_state(self, report: CheckReport) -> None:
        """All attempts of a gathering run at the same time."""
        no_fault(report, "shared")

    def test_scenarios_are_left_as_they_are(self, report: CheckReport) -> None:
        """All attempts of a group get the same object."""
        no_fault(report, "scenario changed")

    def test_a_broken_tool_call_is_answered(self, report: CheckReport) -> None:
        """It is a mistake of the model, which learns from what it costs."""
        no_fault(report, "tool")

    def test_the_right_turns_end_an_episode(self, report: CheckReport) -> None:
        """An attempt that always runs to `max_turns` wastes tokens."""
        no_fault(report, "endless")

    def test_it_leaves_no_thread_and_no_process(self, report: CheckReport) -> None:
        """A run makes thousands of environments."""
        no_fault(report, "left open")

    def test_what_fails_in_the_environment_is_a_failure(self) -> None:
        """An attempt whose environment was down is not a bad attempt."""
        if self.cannot_break:
            return
        asyncio.run(self._with_a_broken_one())

    async def _with_a_broken_one(self) -> None:
        scenario = self.scenarios[0]
        play = best_play(right_of(scenario, self.right_turns))
        found = await played(self.broken_environment, scenario, play, timeout=60.0)
        assert isinstance(found, RolloutFailure), (
            f"with its infrastructure down an attempt gets the reward {found.reward:.3g}. Let the "
            "error leave the environment."
        )
