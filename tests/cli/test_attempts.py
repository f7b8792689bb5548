"""`art show RUN --attempts`."""

import json
import os
import pty
import subprocess
import sys

import pytest

import art_core as art
from art_core.data.store import append_groups, trajectory_file


def choice(content, finish="stop", calls=None):
    message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = calls
    return {"index": 0, "finish_reason": finish, "message": message}


@pytest.fixture
def run(shelf):
    directory = shelf.run("agent", {"reward/mean": 0.5})
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}
    good = art.Trajectory(
        messages_and_choices=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Sky?"}, {"image": 1}, 3]},
            choice(None, calls=[call]),
            {"role": "tool", "tool_call_id": "1", "name": "find", "content": {"found": True}},
            choice("blue\x1b[2J\tsky\n\n" + "very " * 40),
        ],
        reward=0.75,
        turn_rewards=[0.5, -0.25],
        metrics={"right": 1.0},
        metadata={"usd": 0.00125},
        logs=["a line"],
        additional_histories=[art.History(messages_and_choices=[{"role": "user", "content": "x"}])],
    )
    bad = art.Trajectory(messages_and_choices=[choice("gre", finish="length")], reward=-1.0)
    failure = art.RolloutFailure(
        reason="raised", type="OSError", message="down", traceback="Traceback:\n  here"
    )
    groups = [
        art.TrajectoryGroup([bad, good], exceptions=[failure], metadata={"scenario_id": "sky"}),
        art.TrajectoryGroup([art.Trajectory(reward=0.0)]),
    ]
    append_groups(trajectory_file(directory, "train", 1), groups)
    append_groups(trajectory_file(directory, "val", 3), groups[1:])
    return directory


def test_conversations_are_readable(run, art_command):
    printed = art_command("show", "agent", "--attempts", "--best", "--limit", "1").splitlines()
    assert printed == [
        "demo/agent  train step 1  3 attempts",
        "",
        "━━ 1  scenario sky  reward 1  (right 1)  $0.001250",
        "  system:",
        "    Be brief.",
        "  user:",
        "    Sky?",
        '    {"image": 1}',
        "  assistant (sampled, reward 0.5):",
        '    -> find({"q": 1})',
        "  tool find:",
        '    {"found": true}',
        "  assistant (sampled, reward -0.25):",
        "    blue\ufffd[2J sky",
        "    ",
        "    " + "very " * 20,
        "    " + "very " * 20,
        "  another conversation of the attempt:",
        "  user:",
        "    x",
        "  log: a line",
        "",
        "2 more attempts: --limit 3 prints all",
    ]


def test_attempts_are_chosen(run, art_command):
    worst = art_command("show", "agent", "--attempts", "--worst", "--limit", "1")
    assert "━━ 1  scenario sky  reward -1\n  assistant (sampled, cut off):\n    gre" in worst
    failed = art_command("show", "agent", "--attempts", "--failed")
    assert (
        "━━ 1  scenario sky  failed (raised): OSError: down\n    Traceback:\n      here" in failed
    )
    assert "━━ 1  reward 0" in art_command("show", "agent", "--attempts", "--split", "val")
    of_sky = art_command("show", "agent", "--attempts", "--scenario", "sky", "--step", "1")
    assert of_sky.startswith("demo/agent  train step 1  3 attempts\n")


def test_attempts_as_json(run, art_command):
    document = json.loads(art_command("show", "agent", "--attempts", "--json"))
    assert (document["step"], len(document["attempts"])) == (1, 4)
    bad, good, failure, _ = document["attempts"]
    assert (bad["reward"], bad["cut_off"], good["cut_off"]) == (-1.0, True, False)
    assert (bad["usd"], good["usd"]) == (None, 0.00125)
    assert [len(c) for c in good["conversations"]] == [5, 1]
    assert failure["failure"]["type"] == "OSError"


def test_what_is_not_there(run, art_error):
    asked = ("show", "agent", "--attempts")
    assert "can't be a directory's name" in art_error(*asked, "--split", "../..")
    assert "has no test trajectories" in art_error(*asked, "--split", "test")
    assert "has no trajectories of step 7" in art_error(*asked, "--step", "7")
    error = art_error(*asked, "--scenario", "sea")
    assert "step 1 has no attempt at scenario 'sea'. It has: sky." in error
    error = art_error(*asked, "--split", "val", "--scenario", "sea")
    assert "It has: none with an id." in error


@pytest.fixture
def paged(monkeypatch):
    """A terminal of 12 lines; returns the texts that its pager got."""
    texts = []
    monkeypatch.setattr("art_core.cli.output.is_terminal", lambda stream: True)
    monkeypatch.setenv("LINES", "12")
    monkeypatch.delenv("LESS", raising=False)
    monkeypatch.setattr("pydoc.pager", texts.append)
    return texts


def test_long_output_in_a_terminal_goes_through_the_pager(run, art_command, paged):
    assert art_command("show", "agent", "--attempts") == ""
    assert paged[0].startswith("demo/agent  train step 1  4 attempts\n\n")
    assert paged[0].endswith("reward 0\n")
    assert os.environ["LESS"] == "FRX"


def test_short_output_and_that_which_is_asked_for_is_not_paged(run, art_command, paged):
    assert "reward 0" in art_command("show", "agent", "--attempts", "--split", "val")
    assert "reward -1" in art_command("show", "agent", "--attempts", "--no-pager")
    assert '"reward": -1.0' in art_command("show", "agent", "--attempts", "--json")
    assert paged == []


def test_a_pager_that_is_left_early_is_no_error(run):
    terminal, inside = pty.openpty()
    command = [sys.executable, "-m", "art_core", "show", "agent", "--attempts", "--limit", "4"]
    ran = subprocess.run(
        command,
        env={**os.environ, "PAGER": "head -n 1", "LINES": "4", "TERM": "xterm"},
        stdin=inside,
        stdout=inside,
        stderr=subprocess.PIPE,
        check=True,
    )
    assert ran.stderr == b""
    os.close(inside)
    assert os.read(terminal, 10_000).split() == b"demo/agent train step 1 4 attempts".split()
    os.close(terminal)
