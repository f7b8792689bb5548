"""`art check`."""

import json
import sys

import pytest

import art_core as art
from art_core.cli.main import main

MODULE = """
import art_core as art

SCENARIOS = [{"id": "a", "answer": "1"}, {"id": "b", "answer": "2"}]


def asks(reward):
    async def rollout(model, scenario):
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(),
            messages=[{"role": "user", "content": scenario["id"]}],
        )
        return art.Trajectory(reward=reward(completion.choices[0].message.content, scenario))

    return rollout


sound = asks(lambda said, scenario: float(said == scenario["answer"]))
gamed = asks(lambda said, scenario: float(scenario["answer"] in said))


class Game(art.Environment):
    async def reset(self, scenario):
        self.scenario, self.answer = scenario, None
        return [{"role": "user", "content": scenario["id"]}]

    async def respond(self, message):
        if message["content"] == "begin":
            return [{"role": "user", "content": "Go on."}]
        self.answer = message["content"]
        return None

    async def score(self, trajectory):
        return float(self.answer == self.scenario["answer"])


class Forgetful(Game):
    async def reset(self, scenario):
        type(self).scenario = scenario
        return [{"role": "user", "content": scenario["id"]}]


def moves(scenario):
    return ["begin", scenario["answer"]]


fragile = asks(lambda said, s: 200.0 * (said == s["answer"]) if said else float("nan"))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "rewarding.py").write_text(MODULE)
    (tmp_path / "bare.py").write_text("async def rollout(model, scenario): pass\n")
    (tmp_path / "one.jsonl").write_text('{"id": "c", "label": "3"}\n{"id": "d", "label": "4"}\n')


def test_a_sound_reward(project, art_command):
    printed = art_command("check", "rewarding.py:sound")
    assert printed.splitlines()[1].split() == ["answers", "correctly", "1"]
    assert "fault" not in printed
    assert "US dollars per attempt" in printed


def test_faults_are_printed_and_the_status_is_1(project, capsys):
    assert main(["check", "rewarding.py:gamed"], art.Plugins()) == 1
    printed = capsys.readouterr().out
    assert "fault (beaten): a model that lists every answer gets 1, the right answer 1" in printed
    assert main(["check", "rewarding.py:fragile", "--json"], art.Plugins()) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["faults"][0]["kind"] == "not finite"
    assert document["notes"]
    assert next(r for r in document["rewards"] if r["model"] == "says nothing")["reward"] is None


def test_targets_and_scenarios(project, art_error):
    assert "bare has no list of scenarios" in art_error("check", "bare.py:rollout")
    assert "there is no file 'gone.py'" in art_error("check", "gone.py:rollout")


def test_a_rollout_that_raises_for_every_answer(project, capsys):
    asked = ["check", "rewarding.py:sound", "--scenarios", "one.jsonl", "--answer", "label"]
    assert main(asked, art.Plugins()) == 1
    assert "gets no reward at 'c': KeyError: 'answer'" in capsys.readouterr().out


def test_an_environment(project, art_command, capsys):
    assert "fault" not in art_command("check", "rewarding.py:Game")
    printed = art_command("check", "rewarding.py:Game", "--answer", "moves")
    assert "acts correctly, then says nothing" in printed
    assert main(["check", "rewarding.py:Forgetful"], art.Plugins()) == 1
    assert "fault (shared): beside other episodes 'a' has different" in capsys.readouterr().out
