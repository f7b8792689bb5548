"""`art eval` and `art compare`."""

import json
import sys

import orjson
import pytest
from judge_server import judging

import art_core as art
from art_core.cli.evaluation import imported, scenarios_in
from art_core.cli.main import main
from art_core.data.store import append_groups, trajectory_file
from art_core.testing.echo import EchoBackend

MODULE = """
import art_core as art


async def rollout(model, scenario):
    attempt = art.Trajectory(messages_and_choices=[{"role": "user", "content": scenario["id"]}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=attempt.messages()
    )
    attempt.reward = float(completion.choices[0].message.content == scenario["id"])
    return attempt


class Echo(art.Environment):
    async def reset(self, scenario):
        self.wanted = scenario["id"]
        return [{"role": "user", "content": scenario["id"]}]

    async def respond(self, message):
        self.given = message["content"]

    async def score(self, trajectory):
        return float(self.given == self.wanted)
"""


class Far:
    """A backend that echoes, whose older steps answer wrong."""

    @art.hookimpl
    def art_backends(self):
        def reply(messages, step):
            return messages[-1]["content"] if step else "wrong"

        return [art.BackendSpec(name="far", create=lambda: EchoBackend(reply=reply), summary="")]


@pytest.fixture
def project(tmp_path, monkeypatch, shelf):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ART_SINKS", "")
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_agent", raising=False)
    (tmp_path / "my_agent.py").write_text(MODULE)
    lines = [orjson.dumps({"id": f"s{i}"}) for i in range(25)]
    (tmp_path / "val.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    plugins = art.Plugins()
    plugins.register(Far(), "far")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)
    return shelf


@pytest.fixture
async def trained(project):
    model = art.TrainableModel(name="agent", project="demo", base_model="echo-base", sinks=[])
    await model.register("far")
    attempts = [art.Trajectory(reward=r) for r in (0.0, 1.0)]
    await model.train([art.TrajectoryGroup(attempts)])
    await model.close()


EVAL = ("eval", "my_agent:rollout", "--scenarios", "val.jsonl", "--backend", "far")


def test_without_a_backend_a_run_cannot_be_evaluated(trained, capsys, monkeypatch):
    monkeypatch.delenv("ART_BACKEND", raising=False)
    assert main([*EVAL[:-2], "--models", "agent"], art.Plugins()) == 2
    assert capsys.readouterr().err == (
        "art: no backend is named. Give --backend NAME, or set ART_BACKEND.\n"
    )
    assert main([*EVAL, "--models", "agent", "--backend-set", "x=1"], art.Plugins()) == 2
    assert "no backend 'far' option 'x'" in capsys.readouterr().err


def test_steps_of_a_run_and_a_prompted_model_are_evaluated(trained, art_command, monkeypatch):
    with judging(lambda request: request["messages"][-1]["content"]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        models = "agent@0,agent,openai/gpt-4.1-mini"
        printed = art_command(*EVAL, "--models", models, "--repeats", "2", "--json")
    rows = json.loads(printed)["evaluations"]
    assert [(r["model"], r["step"], r["reward"], r["attempts"]) for r in rows] == [
        ("agent", 0, 0.0, 50),
        ("agent", 1, 1.0, 50),
        ("gpt-4.1-mini", 0, 1.0, 50),
    ]
    assert rows[0]["k"] == 2
    printed = art_command("compare", "agent@1", "agent@0")
    assert "agent@1 is better" in printed
    table = art_command("compare", "agent@1", "agent@0", "--markdown").splitlines()
    assert table[0] == "| a | b | a - b | low | high | pairs | planned | better | saved |"
    assert table[2] == (
        "| agent@1 | agent@0 | +1.0000 | +1.0000 | +1.0000 | 25 | 25 | agent@1 | 0% |"
    )
    printed = art_command(*EVAL, "--models", "agent@best", "--markdown")
    assert printed.splitlines()[2].startswith("| agent | 1 | 1.0000 | 1.0000 | 1.0000 |")


def test_an_environment_is_evaluated(trained, art_command):
    asked = ("--scenarios", "val.jsonl", "--backend", "far", "--models", "agent@0,agent@1")
    rows = json.loads(art_command("eval", "my_agent:Echo", *asked, "--json"))["evaluations"]
    assert [row["reward"] for row in rows] == [0.0, 1.0]


def test_models_are_compared_until_it_is_decided(trained, art_command):
    asked = ("--rollout", "my_agent:rollout", "--scenarios", "val.jsonl", "--backend", "far")
    printed = art_command("compare", "agent@1", "agent@0", *asked, "--max-concurrent", "2")
    assert "agent@1 is better" in printed
    assert "on 20 of 25 scenarios" in printed
    assert "the attempts cost 0.000000 US dollars" in printed
    printed = json.loads(art_command("compare", "agent@1", "agent@0", *asked, "--json"))
    assert printed["better"] == "agent@1"


def test_what_was_not_evaluated_can_not_be_compared(trained, art_error, project):
    assert "names no evaluation. Give RUN@STEP" in art_error("compare", "agent", "agent@0")
    assert "agent has no val trajectories of step 7" in art_error("compare", "agent@7", "agent@0")
    assert "needs --rollout and --scenarios" in art_error("compare", "a", "b", "--rollout", "x:y")
    run = project.path / "demo" / "models" / "agent"
    for step, names in ((1, "ab"), (2, "bc")):
        groups = [
            art.TrajectoryGroup([art.Trajectory()], metadata={"scenario_id": n}) for n in names
        ]
        append_groups(trajectory_file(run, "val", step), groups)
    error = art_error("compare", "agent@1", "agent@2")
    assert "different scenarios: 1 only in agent@1 (a); 1 only in agent@2 (c)" in error


def test_names_of_models_are_checked(trained, art_error, project):
    assert "asks for step 'last'" in art_error(*EVAL, "--models", "agent@last")
    assert "no checkpoint has a value" in art_error(*EVAL, "--models", "agent@best")
    project.run("bare", {"reward/mean": 1.0})
    assert "does not name its base model" in art_error(*EVAL, "--models", "bare")


def test_targets_and_scenarios_are_checked(project, tmp_path):
    for wrong in ("my_agent", ":rollout", "my_agent:", "my_agent:other", "no_such_module:x"):
        with pytest.raises(art.ConfigError, match=r"is no function|can't be imported"):
            imported(wrong)
    file = tmp_path / "x.json"
    file.write_text('["a", "b"]')
    assert scenarios_in(file) == ["a", "b"]
    file.write_text('{"id": 1}')
    assert scenarios_in(file) == [{"id": 1}]
    file.write_text('{"id": 1}\n{"id": \n')
    with pytest.raises(art.ConfigError, match=r"x\.json: line 2 is no JSON"):
        scenarios_in(file)
