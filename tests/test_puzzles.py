"""The examples of deduction and of clues, against answers that a reader can check."""

from __future__ import annotations

import re
import runpy
import sys
from itertools import permutations, product
from pathlib import Path

import pytest
from judge_server import judging

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.testing.echo import EchoBackend

EXAMPLES = Path(__file__).parent.parent / "examples"
SENTENCES = {
    r"The theft was (not )?in the (\w+)\.": lambda room, hour, places, said: room == said,
    r"The theft was (not )?at (\w+)\.": lambda room, hour, places, said: hour == said,
    r"(\w+) was in the (\w+) at (\w+)\.": (
        lambda room, hour, places, who, where, at: places[at][who] == where
    ),
}


@pytest.fixture(scope="module")
def temporal_clue():
    return runpy.run_path(str(EXAMPLES / "temporal_clue.py"), run_name="example")


@pytest.fixture(scope="module")
def codenames():
    return runpy.run_path(str(EXAMPLES / "codenames.py"), run_name="example")


@pytest.fixture
def play(tmp_path):
    """Play one attempt with a server that answers from the messages."""

    async def played(rollout, reply, *arguments):
        with judging(lambda request: reply(request["messages"])) as server:
            async with art.Model(
                name="m", project="p", base_path=tmp_path, sinks=[],
                inference_model_name="scripted", inference_base_url=server.url,
            ) as model:  # fmt: skip
                return await rollout(model, *arguments)

    return played


def holds(sentence, room, hour, places):
    """Read a sentence of an easy puzzle, without the example's own clues."""
    for pattern, is_so in SENTENCES.items():
        if found := re.fullmatch(pattern, sentence):
            no, *words = found.groups() if "theft" in sentence else (None, *found.groups())
            return is_so(room, hour, places, *words) == (no is None)
    raise AssertionError(sentence)


@pytest.mark.parametrize("seed", range(6))
def test_one_answer_fits_a_puzzle_and_each_clue_is_needed(temporal_clue, seed):
    """All 1,944 evenings of three people are tried."""
    people, rooms, hours = (temporal_clue[name][:3] for name in ("PEOPLE", "ROOMS", "HOURS"))
    text, answer = temporal_clue["puzzle"](seed, 3)
    clues = re.findall(r"[^.]+\.", text.replace(". ", "."))

    def answers(chosen):
        found = set()
        for room, hour, *evening in product(rooms, hours, *[list(permutations(rooms))] * 3):
            places = {
                at: dict(zip(people, where, strict=True))
                for at, where in zip(hours, evening, strict=True)
            }
            if all(holds(clue, room, hour, places) for clue in chosen):
                thief = next(who for who in people if places[hour][who] == room)
                found.add((thief, room, hour))
        return found

    assert answers(clues) == {answer}
    for clue in clues:
        assert len(answers([each for each in clues if each != clue])) > 1


def test_a_larger_puzzle_is_the_same_in_each_process_and_has_indirect_clues(temporal_clue):
    text, answer = temporal_clue["puzzle"](0, 4)
    assert answer == ("Ben", "kitchen", "ten")
    assert "Ana was not in the kitchen at ten." in text
    stayed = [clue for clue in temporal_clue["clues_of"](4) if "same room at seven" in clue.text]
    first = stayed[0]
    assert first.text == "Ana was in the same room at seven and at eight."
    evening = {"seven": ("attic", "garden"), "eight": ("attic", "kitchen")}
    assert [clue.is_true(evening) for clue in stayed[:2]] == [True, False]


@pytest.mark.parametrize(
    ("says", "parts"),
    [
        ("{0}, {1}, {2}", (1, 1, 1)),
        ("{0}, {1}, noon", (1, 1, 0)),
        ("{1}, {0}, {2}.", (0, 0, 1)),
        ("{0}, {1}", (0, 0, 0)),
        ("It was {0}, {1}, {2}", (0, 1, 1)),
        ("", (0, 0, 0)),
    ],
)
async def test_an_answer_is_paid_for_each_right_word(temporal_clue, play, says, parts):
    answer = temporal_clue["puzzle"](5, 3)[1]
    attempt = await play(temporal_clue["rollout"], lambda *_: says.format(*answer), 5)
    assert tuple(attempt.metrics[name] for name in ("who", "where", "when")) == parts
    assert attempt.reward == pytest.approx(sum(parts) / 3)
    shown = [message["role"] for message in attempt.messages()]
    assert shown == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("clue", "allowed"),
    [
        ("colour", True),
        ("kingdom", False),
        ("and", True),
        ("gre", False),
        ("of", False),
        ("two words", False),
        ("col0ur", False),
        ("", False),
    ],
)
def test_a_clue_is_one_word_that_no_word_on_the_board_contains(codenames, clue, allowed):
    assert codenames["EXAMPLE"].allows(clue) is allowed


@pytest.mark.parametrize(
    ("guesses", "found"),
    [
        (["red", "green"], 1.0),
        (["green", "red"], 1.0),
        (["green", "coin"], 0.5),
        (["coin", "green"], 0.0),
        (["red", "king"], 0.0),
    ],
)
def test_words_count_up_to_the_first_other_word_and_the_assassin_takes_all(
    codenames, guesses, found
):
    assert codenames["EXAMPLE"].found(guesses) == found


def test_a_board_has_the_words_of_one_topic_for_the_team(codenames):
    topics = [line.split() for line in codenames["TOPICS"].splitlines()]
    words = [word for topic in topics for word in topic]
    assert len(words) == len(set(words)) == 80
    for size, own in codenames["OWN"].items():
        for seed in range(20):
            board = codenames["board_of"](seed, size)
            (topic,) = [topic for topic in topics if {*board.own} <= {*topic}]
            assert len(set(board.words)) == size
            assert {*board.words} & {*topic} == {*board.own}
            assert len(board.own) == own
            assert board.assassin in {*board.words} - {*board.own}


@pytest.mark.parametrize(
    ("clue", "guesses", "rewards"),
    [
        (" Sound ", "{own[0]}, {own[1]}", {"spymaster": 1.0, "operative": 1.0}),
        ("sound", "{own[1]}, {other}", {"spymaster": 0.6, "operative": 0.6}),
        ("sound", "{own[0]}, {assassin}", {"spymaster": 0.2, "operative": 0.2}),
        ("sound", "{own[0]}, {own[0]}", {"spymaster": 0.2, "operative": 0.0}),
        ("sound", "{own[0]} {own[1]}", {"spymaster": 0.2, "operative": 0.0}),
        ("{own[0]}", "", {"spymaster": 0.0}),
    ],
)
async def test_both_roles_are_paid_for_the_words_that_are_found(
    codenames, play, clue, guesses, rewards
):
    board = codenames["board_of"](3, 6)
    other = next(word for word in board.words if word not in [*board.own, board.assassin])
    words = {"own": board.own, "assassin": board.assassin, "other": other}
    seen = []

    def reply(messages):
        seen.append(messages[-1]["content"])
        return (clue if len(seen) == 1 else guesses).format(**words)

    attempts = await play(codenames["rollout"], reply, 3)
    assert {role: attempt.reward for role, attempt in attempts.items()} == pytest.approx(rewards)
    assert seen[0].startswith(f"your words: {board.own[0]}, {board.own[1]}\n")
    hidden = [word for text in seen[1:] for word in ("your words", "assassin") if word in text]
    assert hidden == []
    if len(rewards) == 2:
        assert seen[1] == f"board: {', '.join(board.words)}\nclue: sound, 2 words"


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Run an example as a program over the echo, and return the run that it logged."""
    pytest.importorskip("plotext")
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")

    def run(reply, name, *arguments):
        monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=reply))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        (run,) = tmp_path.glob("*/models/*")
        return LoggedRun(run)

    return run


def trained(run):
    return [row.metrics for row in run.rows(split="train") if "reward/mean" in row.metrics]


def test_temporal_clue_trains_and_resumes(program):
    for steps in ("1", "2"):
        run = program(lambda messages, step: "Ana", "temporal_clue.py", "--steps", steps)
    assert run.name == "temporal-clue/size-3-001"
    assert [row["data/step_num_trajectories"] for row in trained(run)] == [48, 48]
    assert {"reward/who", "reward/where", "reward/when"} <= trained(run)[0].keys()


def test_codenames_trains_both_roles(program):
    """No board has a word inside or around "sound": each clue is allowed, and each guess wrong."""
    run = program(lambda messages, step: "sound", "codenames.py", "--steps", "1")
    (row,) = trained(run)
    assert row["data/step_num_trajectories"] == 2 * 48
    assert row["data/step_num_groups_submitted"] == 2 * 4
    assert row["reward/spymaster"] == pytest.approx(0.2)
    assert row["reward/operative"] == 0.0
    assert row["reward/mean"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["temporal_clue.py", "codenames.py"])
def test_a_puzzle_reports_in_one_line_what_is_wrong(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--backend", "nope"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert ended.value.code == 2
    assert "no backend 'nope'; installed: " in capsys.readouterr().err
