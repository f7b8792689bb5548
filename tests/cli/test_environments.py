"""`art env`: environments of plugins and of one's own, listed, checked and played."""

import io
import json
import sys

import pytest

import art_core as art
from art_core.cli.main import main
from art_core.testing.echo import EchoServer

MODULE = '''
import art_core as art

SCENARIOS = [{"id": "a", "answer": "1"}, {"id": "b", "answer": "2"}]


class Game(art.Environment):
    """A number to look up and to repeat."""

    async def reset(self, scenario):
        self.scenario, self.answer = scenario, None
        self.box = art.Toolbox([self.look])
        self.tools = self.box.schemas
        word = scenario if isinstance(scenario, str) else scenario["id"]
        return [{"role": "user", "content": f"Say {word}."}]

    def look(self, word: str) -> str:
        """Look a word up.

        With care.
        """
        if word == "down":
            raise art.InfrastructureError("the book is closed")
        return "1"

    async def respond(self, message):
        if message.get("tool_calls"):
            return await self.box.answers(message)
        self.answer = message["content"]
        return None

    async def score(self, trajectory):
        return await art.reward(trajectory, {"right": self.answer == self.scenario["answer"]})


async def rollout(model, scenario):
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[{"role": "user", "content": scenario["id"]}]
    )
    said = completion.choices[0].message.content
    return art.Trajectory(
        messages_and_choices=[{"role": "user", "content": scenario["id"]}, completion.choices[0]],
        reward=float(said == scenario["answer"]),
    )


def none():
    return []
'''


@pytest.fixture
def game(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "art_test_games.py").write_text(MODULE)
    (tmp_path / "art_test_bad.py").write_text("import a_package_that_is_not_there")
    yield "art_test_games"
    for name in ("art_test_games", "art_test_bad"):
        sys.modules.pop(name, None)


class Worlds:
    @art.hookimpl
    def art_environments(self):
        module, listed = "art_test_games", "art_test_games:SCENARIOS"
        one = {"summary": "a number to repeat"}
        return [
            art.EnvironmentSpec(name="game", target=f"{module}:Game", scenarios=listed, **one),
            art.EnvironmentSpec(
                name="rollout", target=f"{module}:rollout", scenarios=listed, **one
            ),
            art.EnvironmentSpec(
                name="bare", target=f"{module}:Game", scenarios=f"{module}:none", **one
            ),
            art.EnvironmentSpec(name="bad", target="art_test_bad:Game", **one),
        ]


class Broken:
    @art.hookimpl
    def art_environments(self):
        raise ImportError("no licence")


PLUGINS = {"worlds": Worlds()}


@pytest.fixture
def typing(monkeypatch):
    """Type lines on standard input."""

    def type_lines(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return type_lines


def test_environments_are_listed_and_what_can_not_be_imported_is_named(game, art_command):
    said = art_command("env", "list", plugins=PLUGINS | {"broken": Broken()})
    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "a number to repeat" in rows["game"]
    assert "a_package_that_is_not_there" in rows["bad"]
    assert "no licence" in rows["(plugin"]
    assert "can't be loaded" not in rows["game"]


def test_without_any_there_is_a_hint(art_command):
    assert "pip install art-mcp" in art_command("env", "list")


def test_one_is_checked_with_scripted_models(game, art_command):
    said = art_command("env", "check", f"{game}:rollout", "--limit", "2")
    assert "answers correctly" in said
    assert "US dollars per attempt" in said


def test_a_person_plays_and_calls_tools(game, typing, art_command):
    typing('/look {"word": "a"}', "1")
    said = art_command("env", "play", "game", plugins=PLUGINS)
    assert "  /look(word) Look a word up.\n[user] Say a.\n> [tool] 1\n> reward: 1\n" in said
    assert "right: 1" in said


def test_a_scenario_is_chosen_by_its_id(game, typing, art_command, art_error):
    typing("2")
    assert "reward: 1" in art_command("env", "play", f"{game}:Game", "--scenario", "b")
    error = art_error("env", "play", f"{game}:Game", "--scenario", "c")
    assert "there is no scenario 'c'; there are a, b" in error


def test_a_person_plays_a_rollout_through_an_endpoint(game, typing, art_command):
    typing("//1")
    said = art_command("env", "play", "rollout", plugins=PLUGINS)
    assert "[user] a\n> reward: 0\n" in said


def test_what_fails_is_no_reward(game, typing, capsys):
    typing('/look {"word": "down"}')
    assert main(["env", "play", f"{game}:Game"]) == 1
    said = capsys.readouterr().out
    assert "no reward, a failure (infrastructure): InfrastructureError: the book is closed" in said
    typing()
    assert main(["env", "play", f"{game}:Game", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["failure"] == "raised"
    assert "the input ended before the attempt was over" in said.out
    assert "[user] Say a." in said.err


class Served:
    def names(self):
        return ["mini"]

    def step_of(self, name):
        return 0


def test_a_prompted_model_plays_a_task_in_words(game, monkeypatch, art_command, tmp_path):
    server = EchoServer.start(Served(), lambda messages, step: "hm", gives_tokens=False)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    (tmp_path / "s.jsonl").write_text('{"id": "a", "answer": "hm"}')
    arguments = ("--model", "openai/mini", "--scenarios", "s.jsonl", "--dir", str(tmp_path))
    said = art_command("env", "play", f"{game}:Game", *arguments)
    assert "[user] Say a.\n[assistant] hm\nreward: 1\n" in said
    server.close()


def test_a_task_in_words_takes_the_place_of_a_scenario(game, typing, capsys):
    typing("1")
    assert main(["env", "play", f"{game}:Game", "--task", "one"]) == 1
    assert "[user] Say one." in capsys.readouterr().out


def test_an_environment_without_scenarios_needs_a_file(game, art_error):
    error = art_error("env", "play", "bare", plugins=PLUGINS)
    assert "the environment 'bare' has no scenarios of its own. Give --scenarios FILE." in error


def test_an_unknown_one_is_refused(game, art_error):
    assert "no environment 'gme'" in art_error("env", "check", "gme", plugins=PLUGINS)
