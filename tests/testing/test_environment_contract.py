"""The environment checks: sound environments of several kinds pass, and faults have clear texts."""

import asyncio
import os
import random
from typing import ClassVar

import pytest

import art_core as art
from art_core import rewards
from art_core.testing.environment import EnvironmentContract
from art_core.testing.episodes import check_environment, children

SUMS = [{"id": str(n), "answer": str(n + 1), "seed": n} for n in (3, 14, 40)]


def user(text):
    return [{"role": "user", "content": text}]


class Sum(art.Environment):
    """One question, one answer."""

    async def reset(self, scenario):
        self.scenario = scenario
        return user(f"{scenario['id']} + 1?")

    async def respond(self, message):
        return None

    async def score(self, trajectory):
        return rewards.exact_match(trajectory, self.scenario["answer"])


class Taught(Sum):
    """One whose first messages hold an answer as an example."""

    async def reset(self, scenario):
        example = [*user("1 + 1?"), {"role": "assistant", "content": "2"}]
        return [*example, *await super().reset(scenario)]


class Slow(Sum):
    """One that waits for something in every turn."""

    async def respond(self, message):
        await asyncio.sleep(0)

    async def close(self):
        await asyncio.sleep(0)


class Staged(Sum):
    """Two questions, each of which is half of the reward."""

    async def reset(self, scenario):
        self.answers = []
        return await super().reset(scenario)

    async def respond(self, message):
        self.answers.append(message["content"])
        return user("And twice that?") if len(self.answers) == 1 else None

    async def score(self, trajectory):
        first = int(self.scenario["answer"])
        wanted = [str(first), str(2 * first)]
        pairs = zip(self.answers, wanted, strict=True)
        return sum(given == right for given, right in pairs) / 2


class Between(art.Environment):
    """A number between 1 and 100, found by halving; the numbers come from the scenario's seed."""

    max_turns = 8

    async def reset(self, scenario):
        self.secret = random.Random(scenario["seed"]).randint(1, 100)
        self.found = False
        return user("A number from 1 to 100?")

    async def respond(self, message):
        text = (message["content"] or "").strip()
        if not text.isdigit():
            return user("A number, please.")
        self.found = int(text) == self.secret
        return None if self.found else user("higher" if int(text) < self.secret else "lower")

    async def score(self, trajectory):
        turns = trajectory.metrics["turns"]
        return self.found * (1 - turns / 20)


def by_halving(scenario):
    def guess(messages):
        low, high = 1, 100
        guesses = [int(m["content"]) for m in messages if m["role"] == "assistant"]
        for made, message in zip(guesses, messages[2::2], strict=True):
            low, high = (made + 1, high) if message["content"] == "higher" else (low, made - 1)
        return str((low + high) // 2)

    return guess


def twice(scenario):
    return [scenario["answer"], str(2 * int(scenario["answer"]))]


SOUND = {Sum: "answer", Taught: "answer", Slow: "answer", Staged: twice, Between: by_halving}


@pytest.mark.parametrize("kind", SOUND)
async def test_sound_environments_pass(kind):
    found = await check_environment(kind, SUMS, answer=SOUND[kind])
    assert found.faults == []
    assert found.rewards["answers correctly"] > found.rewards["says nothing"]


async def test_models_that_act_correctly_until_their_answer_are_tried():
    found = await check_environment(Staged, SUMS, answer=twice)
    assert found.rewards["answers correctly"] == 1.0
    assert found.rewards["acts correctly, then says nothing"] == 0.5


class TestSum(EnvironmentContract):
    scenarios = SUMS
    environment = Sum
    cannot_break = True


class TestConstant(EnvironmentContract):
    """Two scenarios with one answer."""

    scenarios: ClassVar = [SUMS[0], {**SUMS[0], "seed": 4, "id": "again"}]
    environment = Sum
    cannot_break = constant_is_right = True


async def test_the_contract_needs_scenarios_and_environments():
    with pytest.raises(AssertionError, match="give scenarios"):
        await EnvironmentContract()._checked()
    with pytest.raises(AssertionError, match=r"give environment\(\)"):
        EnvironmentContract().environment()
    with pytest.raises(AssertionError, match="or state cannot_break"):
        EnvironmentContract().broken_environment()


async def test_without_right_turns_the_rules_that_need_none_are_kept():
    class Noisy(Sum):
        async def score(self, trajectory):
            return random.random()

    found = await check_environment(Noisy, SUMS, answer="none")
    assert {fault.kind for fault in found.faults} >= {"not repeatable"}
    assert "answers correctly" not in found.rewards


@pytest.mark.parametrize("answer", [[], [3], {"answer": [None]}])
async def test_right_turns_of_another_form_are_an_error(answer):
    scenario = {"id": "a", "answer": answer if isinstance(answer, list) else answer["answer"]}
    with pytest.raises(art.ConfigError, match="is no list of turns"):
        await check_environment(Sum, [scenario])


async def test_an_environment_that_never_ends_and_never_scores_has_both_faults():
    class Broken(Sum):
        async def respond(self, message):
            raise OSError("down")

    found = await check_environment(Broken, SUMS)
    kinds = [fault.kind for fault in found.faults]
    assert kinds == ["raises", "raises"]
    assert "a message without content ends the attempt: OSError: down" in found.faults[0].text


async def test_episodes_of_different_lengths_are_different():
    class Shrinking(Sum):
        asked: ClassVar[list] = []

        async def respond(self, message):
            self.asked.append(self)
            return user("Sure?") if self.asked.count(self) < 2 and len(self.asked) == 1 else None

    found = await check_environment(Shrinking, SUMS)
    (fault,) = [f for f in found.faults if f.kind == "not repeatable"]
    assert "lead to different messages 2 the second time" in fault.text


async def test_tools_that_change_are_another_beginning():
    class Changing(Sum):
        numbers: ClassVar[list] = []

        async def reset(self, scenario):
            self.numbers.append(1)
            self.tools = [{"type": "function", "function": {"name": f"t{len(self.numbers)}"}}]
            return await super().reset(scenario)

    found = await check_environment(Changing, SUMS)
    assert found.faults[0].kind == "reset"


def test_children_are_the_processes_that_this_one_started(tmp_path):
    (tmp_path / "7" / "stat").mkdir(parents=True)  # it ended while it was looked at
    for pid, parent in (("8", os.getpid()), ("9", 1)):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "stat").write_text(f"{pid} (a) b) S {parent} 0")
    assert list(children(tmp_path)) == ["8"]
