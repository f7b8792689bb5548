"""`--max-usd` of commands, `[budget]` of a project, and the line about a run's budget."""

from __future__ import annotations

import json
import sys

import pytest
from judge_server import judging

import art_core as art
from art_core.budgets.account import BudgetAccount
from art_core.cli.main import main
from art_core.testing.echo import EchoBackend

AGENT = """
import art_core as art


@art.track_api_cost(
    source="judge", provider="p", model_name="m", prompt_per_million=0, completion_per_million=1e6
)
async def judge(max_tokens):
    return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}


async def rollout(model, scenario):
    await judge(max_tokens=1)
    return art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "?"}], reward=float(len(scenario["id"]))
    )
"""
SETTINGS = """
version = 1
[run]
name = "demo"
project = "demos"
rollout = "paying_agent.py:rollout"
scenarios = "scenarios.jsonl"
steps = 9
attempts = 2
[model]
base = "echo-base"
[backend]
name = "near"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, shelf):
    """A project whose steps cost 4 dollars: two attempts at each of two scenarios."""

    class Offer:
        @art.hookimpl
        def art_backends(self):
            return [art.BackendSpec(name="near", create=EchoBackend, summary="")]

    plugins = art.Plugins()
    plugins.register(Offer(), "near")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("ART_SINKS", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paying_agent.py").write_text(AGENT)
    (tmp_path / "art.toml").write_text(SETTINGS)
    (tmp_path / "scenarios.jsonl").write_text('{"id": "a"}\n{"id": "bb"}\n')
    return tmp_path


def run(capsys, *arguments):
    status = main(list(arguments), art.Plugins())
    return status, *capsys.readouterr()


def test_training_ends_out_of_budget_and_a_higher_limit_goes_on(folder, capsys):
    status, out, _ = run(capsys, "train", ".", "--max-usd", "9", "--set", "budget.per_step=4")
    assert status == 1
    assert "out of budget: step needs up to $4, and $1 of the budget of $9 are left" in out
    status, out, _ = run(capsys, "show", "demo")
    assert "demos/demo  out of budget" in out
    assert "budget  $8.0000 spent, $0.0000 reserved, of $9.0000" in out
    status, out, _ = run(capsys, "costs", "demo", "--json")
    assert json.loads(out)["budget"] == {"spent": 8.0, "reserved": 0.0, "limit": 9.0}
    status, out, _ = run(capsys, "train", ".", "--max-usd", "100", "--steps", "3")
    assert status == 0
    status, out, _ = run(capsys, "show", "demo", "--json")
    assert json.loads(out)["status"] == "finished"


def test_a_budget_of_nothing_begins_nothing(folder, capsys):
    status, out, _ = run(capsys, "train", ".", "--max-usd", "0")
    assert status == 1
    assert "nothing is left of the budget of $0" in out
    assert "no step has a reward" in out


def test_a_project_has_a_budget_whose_file_it_may_share(folder, capsys):
    (folder / "art.toml").write_text(SETTINGS + '[budget]\nusd = 5\nfile = "shared.jsonl"\n')
    assert run(capsys, "train", ".")[0] == 1
    assert (folder / "shared.jsonl").exists()
    status, out, _ = run(
        capsys, "train", ".", "--set", "run.name=other", "--budget-file", "shared.jsonl"
    )
    assert status == 1
    assert "$1 of the budget of $5 are left" in out or "$0 of the budget" in out


def test_a_budget_that_does_not_fit_is_refused_before_anything_runs(folder, capsys):
    status, _, err = run(capsys, "train", ".", "--max-usd", "1", "--set", "budget.per_step=2")
    assert status == 2
    assert "a budget of $1 is below per_step=$2" in err
    status, _, err = run(capsys, "train", ".", "--budget-file", "b")
    assert (status, err) == (2, "art: [budget] has file and no usd. Give it, or --max-usd.\n")
    status, _, err = run(capsys, "eval", "paying_agent:rollout", "--scenarios", "scenarios.jsonl",
                         "--models", "x", "--budget-file", "b")  # fmt: skip
    assert (status, err) == (2, "art: --budget-file needs --max-usd\n")


def test_a_run_without_a_budget_has_no_line_about_one(shelf, art_command):
    directory = shelf.run("plain", {"reward/mean": 1.0})
    assert "budget  $" not in art_command("show", "plain")
    (directory / "budget.jsonl").write_text("odd\n")
    assert "budget  $" not in art_command("show", "plain")


def test_an_evaluation_ends_at_the_limit_and_keeps_its_attempts(folder, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    command = ["eval", "paying_agent:rollout", "--scenarios", "scenarios.jsonl"]
    command += ["--models", "openai/m", "--max-concurrent", "1"]
    status, _, err = run(capsys, *command, "--max-usd", "1")
    assert status == 2
    assert "judge m needs up to $1, and $0 of the budget of $1 are left" in err
    status, out, _ = run(capsys, *command, "--max-usd", "1", "--json")
    assert json.loads(out)["evaluations"][0]["attempts"] == 2


def test_pilots_of_a_forecast_end_at_the_limit(folder, capsys):
    status, _, err = run(capsys, "forecast", ".", "--pilots", "4", "--max-usd", "2")
    assert status == 2
    assert "judge m needs up to $1, and $0 of the budget of $2 are left" in err


def test_a_comparison_ends_at_the_limit(folder, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    command = ["compare", "openai/a", "openai/b", "--rollout", "paying_agent:rollout"]
    status, _, err = run(capsys, *command, "--scenarios", "scenarios.jsonl", "--max-usd", "1")
    assert status == 2
    assert "of the budget of $1 are left" in err


def test_judges_are_calibrated_within_a_budget(tmp_path, capsys, monkeypatch):
    (tmp_path / "pairs.jsonl").write_text('{"better": "good", "worse": "bad"}\n')
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with judging(lambda _: '{"score": 1.0}') as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        pairs = str(tmp_path / "pairs.jsonl")
        status, _, err = run(capsys, "check", "--judges", "m", "--pairs", pairs, "--max-usd", "1")
    assert status == 2
    assert "the price of judge m is not known" in err
    assert not server.requests


class Dear(EchoBackend):
    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        model.metrics_builder("train").add_cost("gpu", 1.0)
        return result


@pytest.fixture
async def retrained(monkeypatch, shelf):
    class Offer:
        @art.hookimpl
        def art_backends(self):
            return [art.BackendSpec(name="dear", create=Dear, summary="")]

    plugins = art.Plugins()
    plugins.register(Offer(), "dear")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)
    model = art.TrainableModel(name="agent", project="demo", base_model="echo-base", sinks=[])
    await model.register("dear")
    for _ in range(2):
        attempts = [art.Trajectory(reward=r) for r in (0.0, 1.0)]
        await model.train([art.TrajectoryGroup(attempts)], learning_rate=0.25)
    await model.close()


def test_retraining_and_a_sweep_end_at_the_limit(retrained, capsys, tmp_path):
    status, _, err = run(capsys, "retrain", "agent", "--backend", "dear", "--max-usd", "1")
    assert status == 2
    assert "$0 of the budget of $1" in err
    sweep = ["sweep", "--from", "agent", "--backend", "dear", "--grid", "learning_rate=0.1,0.2"]
    status, _, err = run(capsys, *sweep, "--max-usd", "3")
    assert status == 2
    assert "of the budget of $1" in err  # the first run of the sweep cost 2 dollars
    file = tmp_path / "shared.jsonl"
    more = ["--name", "third", "--max-usd", "9", "--budget-file", str(file)]
    assert run(capsys, "retrain", "agent", "--backend", "dear", *more)[0] == 0
    assert BudgetAccount(art.budget(usd=9), file).refresh().spent == 2.0
