"""A right environment, and broken ones that differ from it by one fault each."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
from mutants.runner import contracts_of

import art_core as art
from art_core import rewards
from art_core.testing.environment import EnvironmentContract

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
RELEASE = threading.Event()
STARTED: list[subprocess.Popen[bytes]] = []


def looking_up(country):
    function = {"name": "look_up", "arguments": json.dumps({"country": country})}
    return {"content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


class RightEnvironment(art.Environment):
    """A capital that the model looks up, then names."""

    max_turns = 4

    def __init__(self, records=CAPITALS):
        self.records = records
        self.box = art.Toolbox([self.look_up])
        self.tools = self.box.schemas

    async def reset(self, scenario):
        self.keep(scenario)
        choices = self.random().sample(sorted(CAPITALS.values()), 3)
        return [{"role": "user", "content": f"{scenario['id']}? One of {', '.join(choices)}."}]

    def keep(self, scenario):
        self.scenario, self.answer = scenario, ""

    def random(self):
        return random.Random(self.scenario["seed"])

    def look_up(self, country: str) -> str:
        """Look a capital up."""
        if self.records is None:
            raise ConnectionError("no records")
        return self.records.get(country, "unknown")

    async def respond(self, message):
        if message.get("tool_calls"):
            return await self.answered(message)
        self.answer = (message["content"] or "").strip()
        return None

    async def answered(self, message):
        return await self.box.answers(message)

    async def score(self, trajectory):
        return float(self.answer == self.scenario["answer"])


class TestRight(EnvironmentContract):
    kind: ClassVar[type] = RightEnvironment
    scenarios: ClassVar[list] = []

    @pytest.fixture(autouse=True)
    def _fresh(self):
        RELEASE.clear()
        type(self).scenarios = [
            {"id": country, "answer": capital, "seed": n, "notes": []}
            for n, (country, capital) in enumerate(CAPITALS.items())
        ]
        yield
        RELEASE.set()
        for process in STARTED:
            process.kill()
            process.wait()
        STARTED.clear()

    def environment(self):
        return self.kind()

    def broken_environment(self):
        return self.kind(records=None)

    def right_turns(self, scenario):
        return [looking_up(scenario["id"]), scenario["answer"]]


class AcceptsLists(RightEnvironment):
    """An answer that lists every capital is right."""

    async def score(self, trajectory):
        return float(self.scenario["answer"] in self.answer)


class PaysForLength(RightEnvironment):
    """A long answer is worth more."""

    async def score(self, trajectory):
        return await super().score(trajectory) + min(2.0, len(self.answer) / 100)


class PaysForTheCall(RightEnvironment):
    """The tool call is paid, whatever the answer."""

    async def score(self, trajectory):
        return rewards.tool_called(trajectory, "look_up", {"country": self.scenario["id"]})


class BelievesTheAnswer(RightEnvironment):
    """An answer that asks for the highest score gets it."""

    async def score(self, trajectory):
        return await super().score(trajectory) or float("highest" in self.answer)


class AcceptsAnyCapital(RightEnvironment):
    """Any capital is right."""

    async def score(self, trajectory):
        return float(self.answer in CAPITALS.values())


class HasOneAnswer(RightEnvironment):
    """The answer of one scenario is right everywhere."""

    async def score(self, trajectory):
        return float(self.answer == "Paris")


class ScoresNothing(RightEnvironment):
    """Silence is worth NaN."""

    async def score(self, trajectory):
        return await super().score(trajectory) if self.answer else float("nan")


class ScoresInParts(RightEnvironment):
    """The score is a dictionary."""

    async def score(self, trajectory):
        return {"right": await super().score(trajectory)}


class CountsEveryCharacter(RightEnvironment):
    """Every character costs, without a limit."""

    async def score(self, trajectory):
        return await super().score(trajectory) - len(self.answer) / 100


class NeedsAWord(RightEnvironment):
    """It raises for an empty answer."""

    async def respond(self, message):
        if not message.get("tool_calls"):
            message["content"].split()[0]
        return await super().respond(message)


class NeedsContent(RightEnvironment):
    """It raises for a message without content."""

    async def respond(self, message):
        return await super().respond(message | {"content": message["content"].strip()})


class IsFragile(RightEnvironment):
    """It raises for a long answer."""

    async def respond(self, message):
        assert len(message["content"] or "") < 1000
        return await super().respond(message)


class PaysAll(RightEnvironment):
    """Every answer is worth the same."""

    async def score(self, trajectory):
        return 1.0


class IgnoresTheSeed(RightEnvironment):
    """It draws what it shows without the scenario's seed."""

    def random(self):
        return random.Random()


class CountsAttempts(RightEnvironment):
    """Its first message has the number of the attempt."""

    numbers = itertools.count()

    async def reset(self, scenario):
        (first,) = await super().reset(scenario)
        return [first | {"content": f"{next(self.numbers)}: {first['content']}"}]


class IsNoisy(RightEnvironment):
    """Its score has noise."""

    async def score(self, trajectory):
        return await super().score(trajectory) + random.uniform(0, 0.01)


class AnswersAtRandom(RightEnvironment):
    """Its tool answers at random."""

    async def answered(self, message):
        answers = await super().answered(message)
        return [each | {"content": str(random.random())} for each in answers]


class ShowsTheScenarioBefore(RightEnvironment):
    """Its first message shows the scenario that was played before."""

    order: ClassVar[list[str]] = ["none"]

    async def reset(self, scenario):
        if self.order[-1] != scenario["id"]:
            self.order.append(scenario["id"])
        (first,) = await super().reset(scenario)
        return [first | {"content": f"{self.order[-2:][0]}, {first['content']}"}]


class RemembersAnswers(RightEnvironment):
    """An answer that was right for another scenario is worth less afterwards."""

    right: ClassVar[dict[str, str]] = {}

    async def score(self, trajectory):
        score = await super().score(trajectory)
        worth = score / (1 + len(self.right.keys() - {self.scenario["id"]}))
        self.right[self.scenario["id"]] = self.answer
        return worth if self.scenario["id"] == "France" else score


class KeepsTheScenarioInItsClass(RightEnvironment):
    """All its objects have the scenario that began last."""

    def keep(self, scenario):
        type(self).scenario, self.answer = scenario, ""


class SeedsTheProcess(RightEnvironment):
    """It seeds the random numbers of the whole process."""

    async def reset(self, scenario):
        first = await super().reset(scenario)
        random.seed(scenario["seed"])
        return first

    async def answered(self, message):
        answers = await super().answered(message)
        return [each | {"content": f"{each['content']} {random.random()}"} for each in answers]


class TakesTheAnswer(RightEnvironment):
    """It removes the answer from the scenario."""

    def keep(self, scenario):
        super().keep(dict(scenario))
        scenario.pop("answer", None)


class NotesTurns(RightEnvironment):
    """It notes its turns in a list of the scenario."""

    async def respond(self, message):
        self.scenario["notes"].append(message["content"])
        return await super().respond(message)


class LoadsWithoutCare(RightEnvironment):
    """It raises for broken JSON."""

    async def answered(self, message):
        for call in message["tool_calls"]:
            json.loads(call["function"]["arguments"])
        return await super().answered(message)


class KnowsItsTools(RightEnvironment):
    """It raises for a tool that does not exist."""

    async def answered(self, message):
        for call in message["tool_calls"]:
            getattr(self, call["function"]["name"])
        return await super().answered(message)


class PassesWhatComes(RightEnvironment):
    """It raises for arguments that its tool does not take."""

    async def answered(self, message):
        for call in message["tool_calls"]:
            if call["function"]["arguments"].startswith('{"no_such'):
                self.look_up(**json.loads(call["function"]["arguments"]))
        return await super().answered(message)


class AnswersOneCall(RightEnvironment):
    """It answers the first call of a message only."""

    async def answered(self, message):
        return (await super().answered(message))[:1]


class AnswersAsTheUser(RightEnvironment):
    """It answers calls in the name of the user."""

    async def answered(self, message):
        answers = await super().answered(message)
        return [{"role": "user", "content": each["content"]} for each in answers]


class GoesOn(RightEnvironment):
    """It asks again after the right answer."""

    async def respond(self, message):
        following = await super().respond(message)
        return following or [{"role": "user", "content": "Go on."}]


class EndsEarly(RightEnvironment):
    """It has one turn less than it needs."""

    max_turns = 1


class LeavesAThread(RightEnvironment):
    """It leaves a thread."""

    async def reset(self, scenario):
        threading.Thread(target=RELEASE.wait, args=(60,)).start()
        return await super().reset(scenario)


class LeavesAProcess(RightEnvironment):
    """It leaves a process."""

    async def reset(self, scenario):
        if not STARTED:
            command = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
            STARTED.append(subprocess.Popen(command))
        return await super().reset(scenario)


class ScoresItsFailure(RightEnvironment):
    """When its records are missing, the attempt is worth 0."""

    async def respond(self, message):
        try:
            return await super().respond(message)
        except ConnectionError:
            return None


class BlamesTheModel(RightEnvironment):
    """When its records are missing, the model gets an error to read."""

    def look_up(self, country: str) -> str:
        """Look a capital up."""
        try:
            return super().look_up(country)
        except ConnectionError as error:
            return f"error: {error}"


class AsksADearJudge(RightEnvironment):
    """Its judge costs a dollar."""

    async def score(self, trajectory):
        prices = {"prompt_per_million": 1.0, "completion_per_million": 1.0}

        @art.track_api_cost(source="judge", provider="x", model_name="j", **prices)
        async def judge():
            return {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0}}

        await judge()
        return await super().score(trajectory)


FAULTS = {
    AcceptsLists: "test_the_right_turns_beat_all_others",
    PaysForLength: "test_the_right_turns_beat_all_others",
    PaysForTheCall: "test_the_right_turns_beat_all_others",
    BelievesTheAnswer: "test_the_right_turns_beat_all_others",
    AcceptsAnyCapital: "test_no_constant_answer_earns_the_full_reward",
    HasOneAnswer: "test_no_constant_answer_earns_the_full_reward",
    ScoresNothing: "test_rewards_are_finite_numbers",
    ScoresInParts: "test_rewards_are_finite_numbers",
    CountsEveryCharacter: "test_rewards_are_bounded",
    NeedsAWord: "test_a_bad_answer_gets_a_low_reward_and_raises_nothing",
    NeedsContent: "test_a_bad_answer_gets_a_low_reward_and_raises_nothing",
    IsFragile: "test_a_bad_answer_gets_a_low_reward_and_raises_nothing",
    PaysAll: "test_answers_get_different_rewards",
    IgnoresTheSeed: "test_a_scenario_begins_in_the_same_way_each_time",
    CountsAttempts: "test_a_scenario_begins_in_the_same_way_each_time",
    IsNoisy: "test_the_same_turns_have_the_same_consequences",
    AnswersAtRandom: "test_the_same_turns_have_the_same_consequences",
    ShowsTheScenarioBefore: "test_an_episode_leaves_nothing_for_the_next",
    RemembersAnswers: "test_an_episode_leaves_nothing_for_the_next",
    KeepsTheScenarioInItsClass: "test_episodes_at_the_same_time_do_not_share_state",
    SeedsTheProcess: "test_episodes_at_the_same_time_do_not_share_state",
    TakesTheAnswer: "test_scenarios_are_left_as_they_are",
    NotesTurns: "test_scenarios_are_left_as_they_are",
    LoadsWithoutCare: "test_a_broken_tool_call_is_answered",
    KnowsItsTools: "test_a_broken_tool_call_is_answered",
    PassesWhatComes: "test_a_broken_tool_call_is_answered",
    AnswersOneCall: "test_a_broken_tool_call_is_answered",
    AnswersAsTheUser: "test_a_broken_tool_call_is_answered",
    GoesOn: "test_the_right_turns_end_an_episode",
    EndsEarly: "test_the_right_turns_end_an_episode",
    LeavesAThread: "test_it_leaves_no_thread_and_no_process",
    LeavesAProcess: "test_it_leaves_no_thread_and_no_process",
    ScoresItsFailure: "test_what_fails_in_the_environment_is_a_failure",
    BlamesTheModel: "test_what_fails_in_the_environment_is_a_failure",
    AsksADearJudge: "test_an_attempt_costs_little",
}

globals().update(contracts_of(TestRight, FAULTS, "kind"))
