"""The contract of rewards. Subclass `RewardContract`; give `scenarios` and `reward`."""

from __future__ import annotations

import asyncio
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from art_core.data.trajectory import Trajectory
from art_core.evaluation.attempts import Rollout
from art_core.testing.check import CheckReport, check
from art_core.testing.statements import Contract, Setting


class ScriptedModelsContract(Contract):
    """The tests that rewards and environments share: scripted models find how a task is gamed."""

    scenarios: ClassVar[Sequence[Any]] = ()
    answer: ClassVar[str] = "answer"
    max_usd: ClassVar[float] = 0.01
    constant_is_right: ClassVar[bool] = False

    @pytest.fixture
    def report(self) -> CheckReport:
        """Return what the scripted models found, computed once per class."""
        found: CheckReport | None = vars(type(self)).get("_found")
        if found is None:
            type(self)._found = found = asyncio.run(self._checked())  # noqa: SLF001
        return found

    _found: ClassVar[CheckReport | None] = None

    async def _checked(self) -> CheckReport:
        if len(self.scenarios) < 2:
            raise AssertionError("give scenarios, two or more")
        return await self._tried()

    @abstractmethod
    async def _tried(self) -> CheckReport:
        """Return what the scripted models found."""

    def test_no_constant_answer_earns_the_full_reward(self, report: CheckReport) -> None:
        """A model that always answers the same does not learn the task."""
        if not self.constant_is_right:
            no_fault(report, "constant")

    def test_rewards_are_finite_numbers(self, report: CheckReport) -> None:
        """NaN, infinity, text and dicts are no rewards."""
        no_fault(report, "not finite")

    def test_rewards_are_bounded(self, report: CheckReport) -> None:
        """A part that grows without end lets one attempt outweigh its group."""
        no_fault(report, "unbounded")

    def test_a_bad_answer_gets_a_low_reward_and_raises_nothing(self, report: CheckReport) -> None:
        """A failed attempt teaches nothing."""
        no_fault(report, "raises")

    def test_answers_get_different_rewards(self, report: CheckReport) -> None:
        """Without a spread inside a group there is no advantage."""
        no_fault(report, "no spread")

    def test_an_attempt_costs_little(self, report: CheckReport) -> None:
        """The price of one attempt is within `max_usd`."""
        assert report.usd_per_attempt <= self.max_usd


class RewardContract(ScriptedModelsContract):
    """The tests of a reward: scripted models must not beat the right answer.

    Give the method `reward(answer, scenario)`, sync or async, or the whole `rollout(model,
    scenario)`; and `scenarios`, whose field `answer` holds the right answer.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("scenarios", "what the reward is tried on; two or more, with different answers"),
        Setting("answer", "the field of a scenario that holds the right answer"),
        Setting("max_usd", "US dollars that one attempt may cost"),
        Setting(
            "constant_is_right",
            "that one constant answer may earn the full reward",
            "a model that always gives the same answer is not looked for",
        ),
    )

    def reward(self, answer: str, scenario: Any) -> Any:  # noqa: ARG002
        """Return the reward of an answer."""
        raise AssertionError("give reward(answer, scenario), or rollout(model, scenario)")

    async def rollout(self, model: Any, scenario: Any) -> Trajectory:
        """Ask the model once, with the scenario's `prompt`, and reward its answer."""
        prompt = scenario.get("prompt", "?") if isinstance(scenario, dict) else str(scenario)
        message = {"role": "user", "content": str(prompt)}
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=[message]
        )
        choice = completion.choices[0]
        value = self.reward(choice.message.content or "", scenario)
        reward = await value if inspect.isawaitable(value) else value
        return Trajectory(messages_and_choices=[message, choice], reward=reward)

    async def _tried(self) -> CheckReport:
        rollout: Rollout = self.rollout
        return await check(rollout, self.scenarios, answer=self.answer)

    def test_the_right_answer_beats_all_others(self, report: CheckReport) -> None:
        """Silence, echoes, lists, denials and words to the judge get less."""
        no_fault(report, "beaten")

    def test_the_same_answer_gets_the_same_reward(self, report: CheckReport) -> None:
        """A reward that changes by itself is noise."""
        no_fault(report, "not repeatable")

    def test_an_endpoint_that_is_down_is_a_failure(self, report: CheckReport) -> None:
        """An attempt that never reached the model is not a bad attempt."""
        no_fault(report, "down")


def no_fault(report: CheckReport, kind: str) -> None:
    """Assert that a report has no fault of a kind."""
    faults = [fault.text for fault in report.faults if fault.kind == kind]
    assert not faults, "\n".join(faults)
