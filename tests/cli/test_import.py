"""`art import traces`."""

import json
import math

import pytest

import art_core as art
from art_core.cli.main import main
from art_core.data.chat_file import read_examples
from art_core.data.store import read_groups
from art_core.testing.echo import EchoBackend

ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "hello"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{"messages": [ASK, SAY], "reward": r} for r in (0.0, 0.9, 1.0)]
    lines.append({"messages": [ASK, SAY]})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_file_becomes_trajectories_that_train_a_model(here, capsys):
    assert main(["import", "traces", "log.jsonl"]) == 0
    said = "4 of 4 trajectories (openai) in log.trajectories.jsonl; the outcome of 1 is unknown"
    assert said in capsys.readouterr().out
    rewards = [t.reward for group in read_groups(here / "log.trajectories.jsonl") for t in group]
    assert rewards[:3] == [0.0, 0.9, 1.0]
    assert math.isnan(rewards[3])
    assert len(read_examples(here / "log.trajectories.jsonl")) == 4


def test_a_condition_chooses_trajectories(here, capsys):
    command = ["import", "traces", "log.jsonl", "--where", "reward > 0.8", "--out", "good.jsonl"]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["trajectories"], answer["read"], answer["unknown_outcomes"]) == (2, 4, 0)
    assert len(list(read_groups(here / "good.jsonl"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["log.jsonl", "--where", "reward > 2"],
            "none of the 4 trajectories of log.jsonl fulfills",
        ),
        (["log.jsonl", "--where", "open('x')"], "a condition can't have"),
        (["missing.jsonl"], "missing.jsonl"),
        (["torn.jsonl"], "line 2: it is not JSON"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(here, capsys, arguments, said):
    text = (here / "log.jsonl").read_text()
    (here / "torn.jsonl").write_text(text.splitlines()[0] + "\n" + text[:20])
    assert main(["import", "traces", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(here.glob("*.trajectories.jsonl"))


def test_bad_lines_are_left_out_when_asked(here):
    with (here / "log.jsonl").open("a") as file:
        file.write('{"messages": [')
    assert main(["import", "traces", "log.jsonl", "--skip-invalid"]) == 0
    assert len(list(read_groups(here / "log.trajectories.jsonl"))) == 4


async def test_a_run_is_a_source_too(here, capsys):
    model = art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=here / "runs", sinks=[]
    )
    backend = EchoBackend()
    await model.register(backend)
    group = art.TrajectoryGroup(
        [art.Trajectory(messages_and_choices=[ASK, SAY], reward=r) for r in (0.0, 1.0)],
        metadata={"scenario_id": "s"},
    )
    await model.train([group])
    await model.close()
    await backend.close()
    found = imported(here, capsys)
    assert [t.metadata for t in found] == [{"run": "p/m", "step": 1, "scenario_id": "s"}]


def imported(here, capsys):
    command = ["import", "traces", "m", "--dir", "runs", "--messages-only"]
    assert main([*command, "--where", "reward == 1"]) == 0
    assert "1 of 2 trajectories (run) in m.trajectories.jsonl" in capsys.readouterr().out
    assert main([*command, "--split", "val"]) == 2
    assert "no trajectories of split 'val'. Its splits are: train." in capsys.readouterr().err
    return [t for group in read_groups(here / "m.trajectories.jsonl") for t in group]
