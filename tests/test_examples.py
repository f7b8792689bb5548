"""The examples' rollouts, with a backend whose answers are known."""

from __future__ import annotations

import random
import re
import runpy
import signal
import sys
from pathlib import Path

import pytest
from judge_server import judging

import art_core as art
from art_core.data.store import read_groups
from art_core.log.reader import LoggedRun
from art_core.log.rows import read_rows
from art_core.testing.echo import EchoBackend

EXAMPLES = Path(__file__).parent.parent / "examples"
DICE = {0: [4, 4, 1, 3], 1: [2, 5, 1, 3]}


@pytest.fixture
def example(monkeypatch):
    """The names of an example, whose file is not run as a program."""
    return lambda name: runpy.run_path(str(EXAMPLES / name), run_name="example")


def test_the_dice_of_a_game_are_the_same_in_each_attempt():
    for game, thrown in DICE.items():
        dice = random.Random(game)
        assert [dice.randint(1, 6) for _ in thrown] == thrown


@pytest.mark.parametrize(
    ("game", "says", "reward", "rolls", "invalid"),
    [
        (0, ["No"], 0.0, 0, False),
        (0, ["yes", "no"], 0.4, 1, False),
        (0, ["Yes", " yes ", "no"], 0.8, 2, False),
        (0, ["yes", "yes", "yes"], 0.0, 3, False),
        (0, ["yes", "perhaps"], 0.0, 1, True),
        (1, ["yes"], 0.0, 1, False),
    ],
)
async def test_a_game_of_dice_pays_the_points_that_are_kept(
    example, tmp_path, game, says, reward, rolls, invalid
):
    said = iter(says)
    backend = EchoBackend(reply=lambda messages, step: next(said))
    async with art.TrainableModel(
        name="dice", project="p", base_model="echo", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        attempt = await example("dice_agent.py")["rollout"](model, game)
    await backend.close()
    assert attempt.reward == reward
    assert attempt.metrics["rolls"] == rolls
    assert attempt.metrics["invalid"] is invalid
    assert sum(m["role"] == "assistant" for m in attempt.messages()) == len(says)


def test_the_dice_agent_trains_and_resumes(monkeypatch, tmp_path, capsys):
    pytest.importorskip("plotext")
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=lambda messages, step: "yes"))
    for steps in ("1", "2"):
        arguments = ["dice_agent.py", "--backend", "echo", "--steps", steps]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(EXAMPLES / "dice_agent.py"), run_name="__main__")
    rows = list(read_rows(tmp_path / "dice" / "models" / "dice-001" / "history.jsonl"))
    assert [row.step for row, *_ in rows if row.metrics.get("reward/rolls")] == [1, 2]
    assert "reward/rolls" in capsys.readouterr().out


def test_the_dice_agent_samples_games_of_a_pool(monkeypatch, tmp_path):
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=lambda messages, step: "no"))
    monkeypatch.setattr("art_core.cli.main.main", lambda arguments: 0)
    monkeypatch.setattr(
        sys, "argv", ["dice_agent.py", "--backend", "echo", "--steps", "1", "--sampler"]
    )
    runpy.run_path(str(EXAMPLES / "dice_agent.py"), run_name="__main__")
    groups = list(
        read_groups(tmp_path / "dice" / "models" / "dice-001" / "trajectories/train/0001.jsonl")
    )
    assert len({group.metadata["scenario_id"] for group in groups}) == len(groups) == 24


MAILS = [
    (["search {event}", "read {id}", "answer {answer}"], 1.0, (1, 1, 1)),
    (["search {event}", "read {id}", "answer {answer}."], 0.5, (1, 1, 0)),
    (["search {event}", "read {other}", "answer {answer}"], 0.2, (1, 0, 0)),
    (["search nothing like it", "search {event}", "read {id}", "answer {answer}"], 1.0, (1, 1, 1)),
    (["search {event}", "search {event}", "search {event}", "read {id}"], 0.5, (1, 1, 0)),
    (["read {id}", "answer {answer}"], 0.8, (0, 1, 1)),
    (["answer {answer}"], 0.0, (0, 0, 0)),
    (["search"], 0.0, (0, 0, 0)),
    (["search {event}", "Read {id}"], 0.2, (1, 0, 0)),
    (['search "NEAR OR', "read 1; DROP TABLE mails", "stop"], 0.0, (0, 0, 0)),
]


@pytest.mark.parametrize(("says", "reward", "parts"), MAILS)
async def test_an_agent_for_mails_is_paid_for_the_mail_that_it_finds_and_reads_and_its_answer(
    example, tmp_path, says, reward, parts
):
    program = example("art_e.py")
    task = program["TASKS"][0]
    event = task["question"].split(" is the ")[1].strip("?").replace(" of ", " ")
    said = iter([text.format(event=event, other=int(task["id"]) + 1, **task) for text in says])
    with judging(lambda _: next(said)) as server:
        async with art.Model(
            name="mails", project="p", base_path=tmp_path, sinks=[],
            inference_model_name="scripted", inference_base_url=server.url,
        ) as model:  # fmt: skip
            attempt = await program["rollout"](model, task)
    assert attempt.reward == pytest.approx(reward)
    assert tuple(attempt.metrics[part] for part in ("found", "read", "right")) == parts
    assert next(said, None) is None


def test_the_mails_are_the_same_in_each_process_and_answer_all_questions(example):
    first, second = example("art_e.py"), example("art_e.py")
    tasks = first["TASKS"]
    assert tasks == second["TASKS"]
    assert len({task["question"] for task in tasks}) == len(tasks) == 140
    bodies = dict(first["MAILS"].execute("SELECT rowid, body FROM mails"))
    for task in tasks:
        event, person = re.search(r"the (.*) of (.*)\?", task["question"]).groups()
        body = bodies[int(task["id"])]
        assert body.startswith(f"From {person}: ")
        assert f"the {event} is on {task['answer']}" in body


@pytest.mark.parametrize("name", ["yes_no_maybe.py", "dice_agent.py", "art_e.py"])
def test_an_example_says_in_one_line_what_is_wrong(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--backend", "nope"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: no backend 'nope'; installed: ")


def test_ctrl_c_ends_an_example_in_one_line_and_its_run_as_interrupted(
    monkeypatch, tmp_path, capsys
):
    presses = [signal.SIGINT]

    def reply(messages, step):
        if presses:
            signal.raise_signal(presses.pop())
        return "yes"

    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")
    monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=reply))
    monkeypatch.setattr(sys, "argv", ["dice_agent.py", "--backend", "echo"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "dice_agent.py"), run_name="__main__")
    assert ended.value.code == 130
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == "dice_agent.py: interrupted; type it again to resume"
    assert "Traceback" not in error
    assert LoggedRun(tmp_path / "dice" / "models" / "dice-001").status() == "interrupted"


def test_the_first_loop_trains_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")
    made = []

    def echo(name):
        made.append(EchoBackend(reply=lambda messages, step: "yes"))
        return made[-1]

    monkeypatch.setattr("art_core.model.trainable.make_backend", echo)
    for steps in ("1", "3"):
        monkeypatch.setattr(sys, "argv", ["first_loop.py", "--steps", steps])
        runpy.run_path(str(EXAMPLES / "first_loop.py"), run_name="__main__")
    rows = list(read_rows(tmp_path / "demo" / "models" / "first-loop" / "history.jsonl"))
    assert [(row.step, row.metrics["reward/mean"]) for row, *_ in rows] == [(1, 1), (2, 1), (3, 1)]
    assert len(made) == 2


async def test_a_prompt_is_distilled_from_the_models_own_older_step(example, monkeypatch, tmp_path):
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")
    backend = EchoBackend(reply=lambda messages, step: "yes it is")
    monkeypatch.setattr("art_core.model.trainable.make_backend", lambda name: backend)
    await example("distil_a_prompt.py")["main"](steps=2)
    rows = list(read_rows(tmp_path / "demo" / "models" / "distil-a-prompt" / "history.jsonl"))
    assert [row.metrics["reward/words"] for row, *_ in rows] == [3, 3]
    # the weights of step 0 are the teacher's; each step of an echo has others
    first, second = (row.metrics["loss/teacher_kl"] for row, *_ in rows)
    assert first == 0
    assert second != 0


@pytest.mark.parametrize(
    ("says", "reward", "metrics"),
    [
        ("<move>{winning}</move>", 1.0, (1, 1, 1)),
        ("<move>{other}</move>", 0.3, (1, 1, 0)),
        ("<move>{taken}</move>", 0.0, (1, 0, 0)),
        ("{winning}", 0.0, (0, 0, 0)),
        ("<move>{winning}</move>.", 0.0, (0, 0, 0)),
    ],
)
async def test_a_strict_move_is_paid_by_its_format_and_its_cell(
    example, tmp_path, says, reward, metrics
):
    names = example("strict_moves.py")
    board, winning = names["winnable"](0)
    other = next(c for c in board if c.isdigit() and c not in winning)
    taken = str(next(n for n, c in enumerate(board, 1) if not c.isdigit()))
    said = says.format(winning=winning[0], other=other, taken=taken)
    backend = EchoBackend(reply=lambda messages, step: said)
    async with art.TrainableModel(
        name="strict", project="p", base_model="echo", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        attempt = await names["rollout"](model, 0)
    await backend.close()
    assert attempt.reward == reward
    assert tuple(attempt.metrics[name] for name in ("format", "legal", "won")) == metrics


def test_strict_moves_are_taught_before_one_of_two_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("plotext")
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=lambda messages, step: "5"))
    arguments = ["strict_moves.py", "--backend", "echo", "--steps", "2", "--lessons", "16"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "strict_moves.py"), run_name="__main__")
    models = tmp_path / "strict-moves" / "models"
    steps = {
        name: [row.step for row, _ in read_rows(models / name / "history.jsonl")]
        for name in ("strict-moves-sft", "strict-moves-grpo")
    }
    assert steps == {"strict-moves-sft": [1, 2, 3, 4], "strict-moves-grpo": [1, 2]}
    assert "reward/mean" in capsys.readouterr().out


def test_figures_are_drawn_by_the_examples_that_have_one(capsys):
    figures = runpy.run_path(str(EXAMPLES.parent / "docs" / "figures.py"))
    drawn = {image.stem for image in figures["IMAGES"].glob("*.png")}
    named = {path.stem for path in EXAMPLES.glob("*.py")}
    assert drawn & named <= figures["drawing"]().keys()
    with pytest.raises(SystemExit):
        figures["main"](["first_loop"])
    assert "'first_loop' draws no figure; these do: art_e, " in capsys.readouterr().err
