"""The games among the examples, against replies that a reader can play through."""

from __future__ import annotations

import random
import runpy
import sys
from pathlib import Path

import pytest

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.testing.echo import EchoBackend

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def game_2048():
    return runpy.run_path(str(EXAMPLES / "game_2048.py"), run_name="example")


@pytest.fixture(scope="module")
def tic_tac_toe():
    return runpy.run_path(str(EXAMPLES / "tic_tac_toe.py"), run_name="example")


@pytest.fixture
def play(tmp_path):
    """Play one game with a backend whose answers are known."""

    async def played(rollout, reply, *arguments):
        backend = EchoBackend(reply=reply)
        async with art.TrainableModel(
            name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
        ) as model:
            await model.register(backend)
            attempt = await rollout(model, *arguments)
        await backend.close()
        return attempt

    return played


def in_turn(*answers):
    replies = iter(answers)
    return lambda messages, step: next(replies)


@pytest.mark.parametrize(
    ("row", "after"),
    [
        ([0, 2, 0, 2], [4, 0, 0, 0]),
        ([2, 2, 2, 2], [4, 4, 0, 0]),
        ([2, 2, 4, 0], [4, 4, 0, 0]),
        ([2, 4, 2, 4], [2, 4, 2, 4]),
    ],
)
def test_two_equal_tiles_that_meet_become_one_once_in_a_move(game_2048, row, after):
    assert game_2048["merged"](row) == after


def test_tiles_slide_to_the_side_that_the_word_names(game_2048):
    board = [[0, 2], [0, 4]]
    after = {word: game_2048["moved"](board, word) for word in ("left", "up", "right", "down", "")}
    assert after == {
        "left": [[2, 0], [4, 0]],
        "up": board,
        "right": board,
        "down": board,
        "": board,
    }
    assert game_2048["moved"]([[2, 0], [0, 4]], "up") == [[2, 4], [0, 0]]
    assert game_2048["moved"]([[2, 0], [0, 4]], "down") == [[0, 0], [2, 4]]


@pytest.mark.parametrize("size", [2, 3])
async def test_a_game_of_2048_goes_on_until_no_move_is_left(game_2048, play, size):
    """A player that answers with a move that shifts a tile ends with a full board."""
    read, moved = lambda text: text.splitlines()[-size:], game_2048["moved"]

    def reply(messages, step):
        lines = read(messages[-1]["content"])
        board = [[0 if tile == "." else int(tile) for tile in line.split()] for line in lines]
        return next(word for word in game_2048["MOVES"] if moved(board, word) != board)

    attempt = await play(game_2048["rollout"], reply, 1, 0, size)
    answers = [m for m in attempt.messages() if m["role"] == "assistant"]
    assert attempt.metrics["moves"] == len(answers) > 0
    assert attempt.metrics["highest"] >= 4 * size
    assert attempt.metrics["wasted"] == 0
    tiles = attempt.reward * game_2048["GOOD"][size]
    assert tiles >= 2 * len(answers)


@pytest.mark.parametrize(
    ("answers", "moves", "tiles"),
    [
        (["", "UP", "sideways"], 0, 4),
        (["", "Left ", "diagonal", "?"], 1, 6),
    ],
)
async def test_a_game_of_2048_ends_at_the_third_answer_that_shifts_nothing(
    game_2048, play, answers, moves, tiles
):
    dice = random.Random(3)
    board = [[0, 0], [0, 0]]
    board = game_2048["with_tile"](game_2048["with_tile"](board, dice), dice)
    assert board == [[2, 2], [0, 0]]
    attempt = await play(game_2048["rollout"], in_turn(*answers), 3)
    assert attempt.reward * 32 == tiles
    assert attempt.metrics == {"moves": moves, "wasted": 3, "highest": 2 * (moves + 1)}
    shown = [m["content"] for m in attempt.messages() if m["role"] == "user"]
    assert shown[1] == "Nothing moved.\n2 2\n. ."


@pytest.mark.parametrize(
    ("game", "answers", "result", "reward"),
    [
        (0, ["1", "2", "3"], "won", 1.0),
        (1, ["1", "2", "4"], "lost", 0.4),
        (3, ["1", "2", "6", "7"], "draw", 0.6),
        (0, ["one"], "illegal", 0.0),
        (2, ["1", "3"], "illegal", 0.1),
    ],
)
async def test_a_game_of_tic_tac_toe_is_worth_its_result(
    tic_tac_toe, play, game, answers, result, reward
):
    """The random player takes 8, 5 in game 0; 3, 5, 8, 7 in game 1; 3 in game 2; 4, 5, 8, 9, 3 in
    game 3.
    """
    attempt = await play(tic_tac_toe["rollout"], in_turn(*answers), game)
    assert [name for name, value in attempt.metrics.items() if value] == [result]
    assert attempt.reward == reward


async def test_the_older_step_plays_the_other_side_and_sees_itself_as_x(tic_tac_toe, tmp_path):
    """Step 1 plays against step 0. Its first move is random, 8 in game 0, and so is the one in
    place of the answer "x".
    """
    answers = {1: iter("5132"), 0: iter("x7")}
    asked = []

    def reply(messages, step):
        asked.append((step, messages[-1]["content"].splitlines()[-3:]))
        return next(answers[step])

    backend = EchoBackend(reply=reply)
    async with art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        attempts = [art.Trajectory(messages_and_choices=[], reward=reward) for reward in (0, 1)]
        await model.train([art.TrajectoryGroup(attempts)])
        attempt = await tic_tac_toe["rollout"](model, 0, opponent=0)
    await backend.close()
    assert asked == [
        (1, ["1 2 3", "4 5 6", "7 8 9"]),
        (1, ["1 2 3", "4 X 6", "7 O 9"]),
        (0, ["O 2 3", "4 O 6", "7 X 9"]),
        (1, ["X 2 3", "O X 6", "7 O 9"]),
        (0, ["O 2 O", "X O 6", "7 X 9"]),
        (1, ["X 2 X", "O X 6", "O O 9"]),
    ]
    assert attempt.reward == 1.0
    assert sum(message["role"] == "assistant" for message in attempt.messages()) == 4


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Run an example as a program over the echo, and return the run that it logged."""
    pytest.importorskip("plotext")
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")

    def run(reply, name, *arguments):
        monkeypatch.setattr(art, "backend", lambda _, **price: EchoBackend(reply=reply, **price))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        (run,) = tmp_path.glob("*/models/*")
        return LoggedRun(run)

    return run


def trained_steps(run):
    return [row.step for row in run.rows(split="train") if "reward/mean" in row.metrics]


def test_2048_trains_on_a_larger_board_and_resumes(program, capsys):
    for steps in ("1", "2"):
        run = program(
            lambda messages, step: "left", "game_2048.py", "--size", "3", "--steps", steps
        )
    assert trained_steps(run) == [1, 2]
    assert run.name == "2048/3x3-001"
    assert "reward/moves" in capsys.readouterr().out


async def test_a_lesson_of_tic_tac_toe_is_a_game_of_two_random_players(tic_tac_toe):
    """In game -2, X begins: the board is empty, and every answer is a cell that was free."""
    lesson = await tic_tac_toe["rollout"](None, -2)
    messages = lesson.messages()
    assert messages[0]["content"].endswith("\n1 2 3\n4 5 6\n7 8 9")
    for shown, answer in zip(messages[::2], messages[1::2], strict=True):
        assert answer["role"] == "assistant"
        assert answer["content"] in "".join(shown["content"].splitlines()[-3:])
    assert lesson.metrics["illegal"] is False
    again = await tic_tac_toe["rollout"](None, -2)
    assert again.messages() == messages


def test_tic_tac_toe_teaches_the_form_of_an_answer_in_its_first_step(program):
    run = program(lambda messages, step: "5", "tic_tac_toe.py", "--steps", "2", "--lessons", "16")
    assert trained_steps(run) == [2]
    lessons = next(row for row in run.rows() if row.step == 1)
    assert lessons.metrics["data/step_num_examples"] == 16
    assert lessons.metrics["data/step_num_gradient_steps"] == 2


def test_tic_tac_toe_turns_to_older_steps_and_evaluates_both_opponents(program, capsys):
    asked = set()

    def reply(messages, step):
        asked.add(step)
        board = messages[-1]["content"].splitlines()[-3:]
        return "no cell" if "X" in "".join(board) else board[1][2]

    few = ("--steps", "2", "--random-steps", "1", "--lessons", "0")
    run = program(reply, "tic_tac_toe.py", *few)
    assert trained_steps(run) == [1, 2]
    assert asked == {0, 1, 2}
    rows = [row for row in run.rows() if row.split in ("random", "older")]
    assert [(row.split, row.step) for row in rows] == [
        ("random", 0),
        ("random", 2),
        ("older", 0),
        ("older", 2),
    ]
    assert "step 2 against older: reward " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["game_2048.py", "tic_tac_toe.py"])
def test_a_game_reports_in_one_line_what_is_wrong(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--backend", "nope"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert ended.value.code == 2
    assert "no backend 'nope'; installed: " in capsys.readouterr().err


def test_a_board_of_another_size_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("ART_SIZE", "5")
    monkeypatch.setattr(sys, "argv", ["game_2048.py"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "game_2048.py"), run_name="__main__")
    assert "no board of size 5; there are: 2, 3, 4" in capsys.readouterr().err
