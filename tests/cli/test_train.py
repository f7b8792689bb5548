"""`art train`: the loop of a project, its settings, and the errors for wrong ones."""

from __future__ import annotations

import json
import re
import socket
import sys
import urllib.error
import urllib.request
from collections import Counter

import pytest

import art_core as art
from art_core.cli.main import main
from art_core.cli.page import page_beside
from art_core.cli.project import read_project
from art_core.log.reader import find_run
from art_core.testing.echo import EchoBackend

AGENT = """
from dataclasses import dataclass

import art_core as art


@dataclass
class Note:
    text: str


async def rollout(model, scenario):
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[{"role": "user", "content": scenario["q"]}]
    )
    said = Note(completion.choices[0].message.content)
    reward = float(said.text.endswith(scenario["q"])) + len(said.text) / 1000
    return art.Trajectory(
        messages_and_choices=[{"role": "user", "content": scenario["q"]}, completion.choices[0]],
        reward=reward,
    )


async def judge(group):
    for number, attempt in enumerate(group):
        attempt.reward = float(number)
    return group


async def drop(group):
    return None


class Silent(art.Environment):
    async def reset(self, scenario):
        return [{"role": "user", "content": scenario["q"]}]

    async def respond(self, message):
        return None

    async def score(self, trajectory):
        return 0.25
"""
SETTINGS = """
version = 1
[run]
name = "demo"
project = "demos"
rollout = "agent.py:rollout"
scenarios = "scenarios.jsonl"
steps = 2
attempts = 2
scenarios_per_step = 2
[model]
base = "echo-base"
[backend]
name = "near"
[backend.near]
answer = "yes"
[train]
learning_rate = 1e-4
[eval]
scenarios = "val.jsonl"
"""


@pytest.fixture
def plugins(monkeypatch, shelf):
    class Offer:
        @art.hookimpl
        def art_backends(self):
            return [art.BackendSpec(name="near", create=near, summary="")]

    def near(*, answer="?"):
        return EchoBackend(reply=lambda messages, step: f"{answer} {messages[-1]['content']}")

    plugins = art.Plugins()
    plugins.register(Offer(), "near")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("ART_SINKS", "")
    return plugins


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "my agent"
    folder.mkdir()
    (folder / "agent.py").write_text(AGENT)
    (folder / "art.toml").write_text(SETTINGS)
    (folder / "scenarios.jsonl").write_text('{"q": "a"}\n{"q": "b"}\n{"q": "c"}\n')
    (folder / "val.jsonl").write_text('{"q": "v"}\n')
    return folder


@pytest.fixture
def train(project, plugins, capsys):
    def run(*options):
        status = main(["train", str(project), *options], plugins)
        return status, *capsys.readouterr()

    return run


def rows(shelf, name="demo"):
    file = shelf.path / "demos" / "models" / name / "history.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_trains_evaluates_and_stores_its_settings(train, shelf, project):
    status, out, _ = train()
    assert status == 0
    found = [(row["split"], row["step"]) for row in rows(shelf)]
    assert found == [("val", 0), ("train", 1), ("train", 2), ("val", 2)]
    line, where, after = out.splitlines()
    assert line.startswith("reward/mean  ")
    assert line.endswith("  1.005 to 1.005")
    assert where.startswith("step 2, $0.0000 in all, ")
    assert after == f"next: art show demo, or art train '{project}' --steps N to go on"
    stored = find_run("demo", shelf.path).model()["config"]
    assert stored["run"]["attempts"] == 2
    assert stored["eval"]["every"] == 4
    assert stored["train"] == {"learning_rate": 1e-4}


def test_an_evaluation_knows_the_options_of_the_backend(train, shelf, project, plugins, capsys):
    assert train("--steps", "1", "--set", "backend.near.answer=always")[0] == 0
    asked = [f"{project}/agent.py:rollout", "--scenarios", f"{project}/val.jsonl", "--json"]
    capsys.readouterr()
    assert main(["eval", *asked, "--models", "demo"], plugins) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert found["reward"] == pytest.approx(1.008)
    changed = ["--backend-set", "answer=no"]
    assert main(["eval", *asked, "--models", "demo@0", "--split", "other", *changed], plugins) == 0
    (found,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert found["reward"] == pytest.approx(1.004)


def test_it_trains_while_the_next_attempts_are_made(train, shelf):
    assert train("--pipeline", "--set", "run.judge=agent.py:judge")[0] == 0
    found = rows(shelf)
    trained = [row for row in found if row["split"] == "train" and "reward/mean" in row]
    assert [row["step"] for row in trained] == [1, 2]
    assert all("pipeline/step_num_groups_stale" in row for row in trained)
    assert {row["step"] for row in found if row["split"] == "val"} == {0, 2}
    assert train("--pipeline", "--steps", "3", "--set", "run.judge=agent.py:judge")[0] == 0
    assert [row["step"] for row in rows(shelf) if "_cursor" in row] == [1, 2, 3]


@pytest.mark.parametrize("given", [None, "0123456789abcdef"])
def test_it_serves_attempts_to_workers(train, monkeypatch, given):
    monkeypatch.delenv("ART_GATEWAY_KEY", raising=False)
    if given:
        monkeypatch.setenv("ART_GATEWAY_KEY", given)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    status, out, _ = train("--pipeline", "--gateway", f"{port}")
    *key, command = out.splitlines()[: 1 if given else 2]
    assert status == 0
    assert command == f"art worker agent.py:rollout --server http://127.0.0.1:{port}"
    assert [line.startswith("export ART_GATEWAY_KEY=") for line in key] == ([] if given else [True])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--allow-remote"], "--allow-remote is of a gateway"),
        (["--gateway", "8400"], "--gateway 8400 needs --pipeline and a port"),
        (["--pipeline", "--gateway", "here:http"], "--gateway here:http needs --pipeline"),
        (["--pipeline", "--gateway", "0.0.0.0:1"], "can be reached from other machines"),
        (["--set", "run.max_concurrent=0"], "Give --pipeline --gateway PORT, too."),
    ],
)
def test_a_gateway_that_does_not_fit_is_refused(train, options, message):
    status, _, err = train(*options)
    assert status == 2
    assert message in err


def test_it_goes_on_after_the_last_step(train, shelf):
    assert train("--steps", "1")[0] == 0
    assert train("--steps", "3", "--set", "eval.every=1")[0] == 0
    found = [(row["split"], row["step"]) for row in rows(shelf)]
    begun = [("val", 0), ("train", 1), ("val", 1)]
    assert found == [*begun, ("train", 2), ("val", 2), ("train", 3), ("val", 3)]
    status, out, _ = train("--steps", "3", "--json")
    assert status == 0
    assert {"step": 3, "usd": 0.0, "run": "demo"}.items() <= json.loads(out).items()
    assert len(rows(shelf)) == len(found)


def test_each_scenario_is_once_in_an_epoch(train, shelf):
    assert train("--steps", "3")[0] == 0
    run = find_run("demo", shelf.path)
    steps = [[g.metadata["scenario_id"] for g in run.groups(step)] for step in (1, 2, 3)]
    taken = [each for step in steps for each in step]
    assert set(Counter(taken).values()) == {2}
    assert [len(set(taken[at : at + 3])) for at in (0, 3)] == [3, 3]
    assert all(len(group) == 2 for step in (1, 2, 3) for group in run.groups(step))


def test_a_sampler_takes_the_scenarios_that_teach_and_no_pipeline_does(train, shelf):
    changes = ("--set", "run.sampler=thompson", "--set", "run.scenarios_per_step=1")
    assert train(*changes, "--steps", "2")[0] == 0
    found = find_run("demo", shelf.path)
    for step in (1, 2):
        tried = [group.metadata["scenario_id"] for group in found.groups(step)]
        assert len(tried) == len(set(tried)) <= 2
    status, _, err = train(*changes, "--steps", "3", "--pipeline")
    assert status != 0
    assert "takes scenarios in epochs" in err
    assert "sampler" in train("--set", "run.sampler=greedy")[2]


def test_a_judge_sets_the_rewards_of_a_group(train, shelf):
    assert train("--set", "run.judge=agent.py:judge", "--set", "run.scenarios_per_step=1")[0] == 0
    rewards = [group.rewards for group in find_run("demo", shelf.path).groups(1)]
    assert rewards == [[0.0, 1.0]]


def test_an_environment_is_a_rollout(train, shelf):
    changes = ["run.rollout=agent.py:Silent", "run.timeout_s=60", "run.attempts=3"]
    assert train(*(word for change in changes for word in ("--set", change)))[0] == 0
    assert [group.rewards for group in find_run("demo", shelf.path).groups(1)] == [[0.25] * 3] * 2


def test_without_an_evaluation_there_are_only_training_rows(train, shelf, project):
    text = (project / "art.toml").read_text()
    (project / "art.toml").write_text(text.partition("[eval]")[0])
    assert train()[0] == 0
    assert {row["split"] for row in rows(shelf)} == {"train"}


def test_a_step_whose_groups_are_all_dropped_has_no_reward(train, shelf):
    status, out, _ = train("--steps", "1", "--set", "run.judge=agent.py:drop")
    assert status == 0
    assert out.startswith("no step has a reward\nnext: ")


def test_an_option_of_the_command_changes_a_setting(train, shelf, project):
    changes = ["--set", "backend.near.answer=no", "--set", "run.name=other"]
    assert train("--backend", "near", "--steps", "1", *changes)[0] == 0
    (row,) = [row for row in rows(shelf, "other") if row["split"] == "train"]
    assert row["reward/mean"] == pytest.approx(1.004)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("run.stps=1", "art.toml: no key of [run] 'stps'; known: attempts, "),
        ("run.stps=1", "Did you mean 'steps'?"),
        (
            "rum.steps=1",
            "no section 'rum'; known: backend, budget, eval, model, run, train. Did you mean",
        ),
        ("train.learnin_rate=1", "no key of [train] 'learnin_rate'"),
        ("train.learnin_rate=1", "Did you mean 'learning_rate'?"),
        ("train.learning_rate=-1", "learning_rate must be a finite number above 0, got -1"),
        ("run.steps=0", "art.toml: run.steps must be a whole number of at least 1, got 0"),
        ("run.rollout=3", "art.toml: run.rollout must be a text, got 3"),
        ("backend.nme=near", "no key of [backend] 'nme'; known: name. Did you mean 'name'?"),
        ("backend.near.answr=1", "no backend 'near' option 'answr'"),
        ("backend.name=far", "no backend 'far'"),
        ("run.rollout=agent.py:none", "'agent.py:none' can't be imported"),
        ("run.scenarios=none.jsonl", "none.jsonl: No such file"),
        ("steps", "'steps' is no SECTION.KEY=VALUE. Give one like train.learning_rate=3e-5."),
        (".steps=1", "'.steps=1' is no SECTION.KEY=VALUE"),
        ("run.name.first=1", "'run.name.first=1': name is a value, not a section"),
        ("version=2", "'version=2' is no SECTION.KEY=VALUE"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_anything_runs(train, shelf, change, problem):
    status, out, err = train("--set", change)
    assert (status, out) == (2, "")
    assert problem in err
    assert not shelf.path.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SETTINGS.replace("version = 1", "version = 0"), "has version 0, and this art-core reads"),
        (SETTINGS.replace("version = 1", ""), "has version None, and this art-core reads version"),
        (SETTINGS.replace('name = "demo"', "", 1), "art.toml: [run] needs name"),
        (SETTINGS.replace("[model]", "[model"), "art.toml is no TOML: "),
        ('version = 1\nrun = "x"', "art.toml: run must be a section, [run]"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(train, project, text, problem):
    (project / "art.toml").write_text(text)
    status, _, err = train()
    assert status == 2
    assert problem in err


def test_a_directory_without_a_project_is_refused(train, project):
    (project / "art.toml").unlink()
    status, _, err = train()
    assert status == 2
    assert err == (
        f"art: {project} has no art.toml. `art init DIRECTORY` writes a project to start from.\n"
    )


def test_no_scenarios_are_refused(train, project):
    (project / "scenarios.jsonl").write_text("\n")
    status, _, err = train()
    assert status == 2
    assert "scenarios.jsonl has no scenarios. Write one JSON value per line." in err


@pytest.fixture
def board(plugins):
    """`art board` among this process's plugins; the one that serves is the installed one."""

    class Offer:
        @art.hookimpl
        def art_commands(self):
            run = iter
            return [art.CommandSpec(name="board", create=lambda _: None, run=run, summary="")]

    plugins.register(Offer(), "board")


@pytest.mark.usefixtures("board")
def test_a_board_that_is_installed_serves_the_run_beside_the_training(train, shelf):
    shelf.path.mkdir(exist_ok=True)
    first = train("--steps", "1", "--dir", str(shelf.path))[1].splitlines()[0]
    address = r"http://127\.0\.0\.1:\d+/"
    assert re.fullmatch(
        f"the run as a page: {address}, and afterwards: art board {shelf.path}", first
    )
    assert "the run as a page" not in train("--steps", "2", "--no-board")[1]


@pytest.mark.usefixtures("board")
def test_a_page_that_cannot_start_does_not_stop_the_training(train, monkeypatch):
    monkeypatch.setenv("ART_BLOCK", "board")
    status, out, _ = train("--steps", "1")
    assert status == 0
    assert "the run as a page" not in out


def test_a_page_ends_with_its_block(tmp_path):
    with page_beside(tmp_path / "new") as address, urllib.request.urlopen(address) as answer:
        assert b"<title>" in answer.read()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)


def test_the_file_of_a_key_that_is_not_given_is_none(project):
    (project / "art.toml").write_text(SETTINGS.partition("[eval]")[0])
    assert read_project(project).file("eval", "scenarios") is None


def test_the_doctor_watches_and_ends_a_training_by_its_finding(train, shelf, project, monkeypatch):
    monkeypatch.delenv("ART_SINKS")
    flat = ["--set", "run.rollout=agent.py:Silent", "--set", "run.attempts=3"]
    status, out, error = train("--steps", "300", "--stop-on", "dead-groups-wrong", *flat)
    assert (status, out) == (2, "")
    assert re.search(r"doctor: dead-groups-wrong: from step \d\n  100% of the groups", error)
    assert "art: the doctor stopped the training of 'demo' after step" in error
    run = find_run("demo", shelf.path)
    assert run.state().status == "stopped by the doctor"
    assert 10 <= run.last_row().step < 300


def test_sinks_that_are_named_stay_and_the_doctor_comes_if_it_may_stop(
    train, shelf, plugins, monkeypatch
):
    monkeypatch.setenv("ART_SINKS", "")
    assert train("--set", 'run.stop_on=["truncation"]')[0] == 0
    stored = json.loads((shelf.path / "demos" / "models" / "demo" / "sinks.json").read_text())
    assert stored == {"doctor": {"options": {"stop_on": ["truncation"]}}}
    status, _, error = train("--stop-on", "truncatoin")
    assert status == 2
    assert "no rule 'truncatoin'" in error
    assert "run.stop_on must be a list of texts" in train("--set", "run.stop_on=truncation")[2]
