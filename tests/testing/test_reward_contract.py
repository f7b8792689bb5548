"""The reward checks: each planted fault is found by its rule, and sound rewards pass."""

import itertools
import json
import random
import re

import numpy as np
import pytest

import art_core as art
from art_core import rewards
from art_core.testing.check import check
from art_core.testing.reward import RewardContract

CAPITALS = [
    {"id": c, "prompt": f"What is the capital of {c}? Answer with its name.", "answer": a}
    for c, a in (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"))
]
SUMS = [{"id": str(n), "prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in (3, 14, 40)]
COUNTER = itertools.count()
NOISE = random.Random(0)


def said(answer):
    return answer.strip().lower()


def right(answer, scenario):
    return float(answer.strip() == scenario["answer"])


def strict_json(answer, scenario):
    return json.loads(answer)["answer"] == scenario["answer"]


# Each is a plausible reward, and the rule that finds its fault.
PLANTED = {
    "constant": (lambda a, s: 1.0, "no spread"),
    "always zero": (lambda a, s: 0.0, "no spread"),
    "substring": (lambda a, s: float(s["answer"] in a), "beaten"),
    "substring, any case": (lambda a, s: float(s["answer"].lower() in said(a)), "beaten"),
    "any known answer": (lambda a, s: float(a in {c["answer"] for c in CAPITALS}), "constant"),
    "any capital letter": (lambda a, s: float(a[:1].isupper()), "beaten"),
    "long answers": (lambda a, s: min(1.0, len(a) / 100), "beaten"),
    "short answers": (lambda a, s: 1.0 / (1 + len(a)), "beaten"),
    "not empty": (lambda a, s: float(bool(a)), "beaten"),
    "polite words": (lambda a, s: right(a, s) + 2.0 * ("detail" in a), "beaten"),
    "repeats the question": (lambda a, s: float(s["id"] in a), "beaten"),
    "wrong sign": (lambda a, s: -right(a, s), "beaten"),
    "distance with a wrong sign": (lambda a, s: abs(len(a) - len(s["answer"])) / 10, "beaten"),
    "prefix": (lambda a, s: float(s["answer"].startswith(a)), "beaten"),
    "same letters": (lambda a, s: len(set(a) & set(s["answer"])) / len(set(s["answer"])), "beaten"),
    "believes the answer": (lambda a, s: right(a, s) or float("highest" in a), "beaten"),
    "a regular expression without ends": (
        lambda a, s: float(bool(re.search(s["answer"], a))),
        "beaten",
    ),
    "one answer for all": (lambda a, s: float(a == "Paris"), "constant"),
    "nan for silence": (lambda a, s: right(a, s) if a else float("nan"), "not finite"),
    "infinite": (lambda a, s: float("inf") if right(a, s) else 0.0, "not finite"),
    "text": (lambda a, s: "good" if right(a, s) else 0.0, "not finite"),
    "a dict": (lambda a, s: {"reward": right(a, s)}, "not finite"),
    "None for a miss": (lambda a, s: right(a, s) or None, "not finite"),
    "an array": (lambda a, s: np.array([right(a, s), 0.0]), "not finite"),
    "parses without care": (strict_json, "raises"),
    "divides by the length": (lambda a, s: right(a, s) / len(a), "raises"),
    "first word of nothing": (lambda a, s: float(a.split()[0] == s["answer"]), "raises"),
    "asserts": (lambda a, s: right(a, s) if len(a) < 100 else 1 / 0, "raises"),
    "a penalty without an end": (lambda a, s: right(a, s) - len(a) / 100, "unbounded"),
    "a bonus without an end": (
        lambda a, s: right(a.split()[0], s) * len(a) if a else 0.0,
        "unbounded",
    ),
    "counts calls": (lambda a, s: right(a, s) + next(COUNTER) * 1e-3, "not repeatable"),
    "noise": (lambda a, s: right(a, s) + NOISE.random() * 1e-3, "not repeatable"),
}

SOUND = {
    "exact": right,
    "exact, a bool": lambda a, s: a.strip() == s["answer"],
    "exact, numpy": lambda a, s: np.float32(right(a, s)),
    "exact, an int": lambda a, s: int(right(a, s)),
    "of the library": lambda a, s: rewards.exact_match(a, s["answer"]),
    "normalised": lambda a, s: rewards.normalised_match(a, s["answer"]),
    "pattern": lambda a, s: rewards.matches_pattern(a, re.escape(s["answer"])),
    "any case": lambda a, s: float(said(a) == s["answer"].lower()),
    "with a full stop": lambda a, s: float(a.strip().rstrip(".") == s["answer"]),
    "scaled": lambda a, s: 10 * right(a, s),
    "shifted": lambda a, s: right(a, s) - 1,
    "plus and minus": lambda a, s: 2 * right(a, s) - 1,
    "length penalty": lambda a, s: right(a, s) + rewards.length_penalty(a, target=20, most=200),
    "repetition penalty": lambda a, s: right(a, s) + rewards.repetition_penalty(a),
    "partly by letters": lambda a, s: right(a, s) + 0.1 * (a[:1] == s["answer"][:1]),
    "partly by form": lambda a, s: right(a, s) + 0.1 * (len(a.split()) == 1),
    "partly by length": lambda a, s: right(a, s) + 0.1 * (len(a) < 10),
    "similarity": lambda a, s: right(a, s) + 0.2 * (len(a) == len(s["answer"])),
    "first line": lambda a, s: float(a.split("\n")[0].strip() == s["answer"]),
    "last word": lambda a, s: float(bool(a.split()) and a.split()[-1] == s["answer"] == a.strip()),
    "starts with it": lambda a, s: float(a.startswith(s["answer"]) and "," not in a),
    "no other capital": lambda a, s: float(
        s["answer"] in a
        and "not" not in a
        and not any(c["answer"] in a for c in CAPITALS if c["answer"] != s["answer"])
    ),
}
SOUND_SUMS = {
    "the last number": lambda a, s: rewards.number_match(a, float(s["answer"])) * ("not" not in a),
    "the only number": lambda a, s: float(
        re.findall(r"\d+", a) == [s["answer"]] and "not" not in a
    ),
    "mathematics": lambda a, s: (
        rewards.maths_match(a, s["answer"]) * (len(a) < 50 and "not" not in a)
    ),
    "close": lambda a, s: max(0.0, 1 - abs(int(a) - int(s["answer"]))) if a.isdigit() else 0.0,
    "digits": lambda a, s: float(a == s["answer"]),
    "a whole number": lambda a, s: float(a.isdigit() and int(a) == int(s["answer"])),
    "with a unit": lambda a, s: float(a.removesuffix(" apples") == s["answer"]),
    "two tries": lambda a, s: float(a.split(" or ")[0] == s["answer"]),
}


def rollout_of(reward):
    class Asking(RewardContract):
        def reward(self, answer, scenario):
            return reward(answer, scenario)

    return Asking().rollout


@pytest.mark.parametrize("name", PLANTED)
async def test_each_planted_fault_is_found(name):
    reward, kind = PLANTED[name]
    found = await check(rollout_of(reward), CAPITALS)
    assert kind in {fault.kind for fault in found.faults}, found


@pytest.mark.parametrize("name", [*SOUND, *SOUND_SUMS])
async def test_sound_rewards_pass(name):
    reward = (SOUND | SOUND_SUMS)[name]
    found = await check(rollout_of(reward), CAPITALS if name in SOUND else SUMS)
    assert found.faults == []


def test_there_are_thirty_of_each():
    assert (len(PLANTED), len(SOUND) + len(SOUND_SUMS)) == (32, 30)


class TestExact(RewardContract):
    scenarios = CAPITALS

    def reward(self, answer, scenario):
        return rewards.exact_match(answer, scenario["answer"])


class TestStated(RewardContract):
    scenarios = (CAPITALS[0], CAPITALS[0] | {"id": "again"})
    constant_is_right = True

    async def reward(self, answer, scenario):
        return rewards.exact_match(answer, scenario["answer"])


async def test_an_endpoint_that_is_down_is_no_reward():
    async def careless(model, scenario):
        try:
            return await rollout_of(right)(model, scenario)
        except Exception:
            return art.Trajectory(reward=0.0)

    found = await check(careless, CAPITALS)
    assert [fault.kind for fault in found.faults] == ["down"]
    assert "an endpoint that is down gives the reward 0" in found.faults[0].text


async def test_a_rollout_that_never_asks_the_model_is_an_error():
    async def deaf(model, scenario):
        return art.Trajectory(reward=1.0)

    with pytest.raises(art.ConfigError, match="never asked the model"):
        await check(deaf, CAPITALS)


async def test_without_answers_the_words_of_the_prompts_are_tried():
    class Scenario:
        def __init__(self, text):
            self.id = self.text = text

    async def word(model, scenario):
        prompt = {"role": "user", "content": f"Say yes or no. {scenario.text}"}
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=[prompt]
        )
        answer = completion.choices[0].message.content
        return art.Trajectory(reward={"yes": 200.0, "no": 1.0}.get(answer, 0.0))

    found = await check(word, [Scenario("Red?"), Scenario("Blue?")])
    assert [f.text for f in found.faults] == ["always answering 'yes' earns the full reward, 200"]
    assert found.notes == ["a model that always says 'yes' gets up to 200"]
    assert found.rewards["always says 'no'"] == 1.0


async def test_answers_come_from_a_function_and_calls_are_priced():
    prices = {"prompt_per_million": 1.0, "completion_per_million": 1.0}

    @art.track_api_cost(source="judge", provider="x", model_name="j", **prices)
    async def judge():
        return {"usage": {"prompt_tokens": 500_000, "completion_tokens": 0}}

    async def judged(model, scenario):
        attempt = await rollout_of(right)(model, scenario)
        await judge()
        return attempt

    found = await check(judged, CAPITALS, answer=lambda scenario: scenario["answer"])
    assert (found.faults, found.usd_per_attempt) == ([], pytest.approx(0.5))


async def test_the_contract_needs_scenarios_and_a_reward():
    with pytest.raises(AssertionError, match="give reward"):
        RewardContract().reward("a", {})
    with pytest.raises(AssertionError, match="give scenarios"):
        await RewardContract()._checked()
