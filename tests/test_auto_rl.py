"""The example whose scenarios a model writes and whose rewards a judge gives, beside a scripted
server that does both.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from judge_server import judging

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.testing.echo import EchoBackend

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "examples" / "auto_rl.py"


@pytest.fixture(scope="module")
def judge():
    return runpy.run_path(str(ROOT / "docs" / "judge.py"), run_name="judge")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The sky is blue.", 1.0),
        ("The sky is blue", 0.5),
        ("The sky is blue. It is high.", 0.5),
        ("Blue.", 0.0),
        ("", 0.0),
        (" ".join(["word"] * 18) + ".", 0.75),
        (" ".join(["word"] * 30), 0.0),
    ],
)
def test_the_scripted_judge_scores_the_form_of_an_answer(judge, answer, score):
    assert judge["score"](answer) == score


@pytest.fixture
def program(monkeypatch, tmp_path, judge):
    """Run the example over the echo; return its run and the requests to writer and judge."""
    pytest.importorskip("plotext")
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")

    def answer(request):
        if request["model"] == "writer":
            pages = [f"{place}. Why is the sky number {place} blue?" for place in range(1, 15)]
            return "Here they are:\n" + "\n".join(pages)
        return judge["verdict"](request)

    def run(reply, *arguments):
        monkeypatch.setattr(art, "backend", lambda _: EchoBackend(reply=reply))
        monkeypatch.setattr(sys, "argv", ["auto_rl.py", "--scenarios", "6", *arguments])
        with judging(answer) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            example = runpy.run_path(str(PROGRAM), run_name="__main__")
        assert example["URL"] == server.url
        return LoggedRun(tmp_path / "auto-rl" / "models" / "auto-rl-001"), server.requests

    return run


def longer_each_step(messages, step):
    return "The sky is blue" + "." * (step > 0)


def test_a_model_writes_scenarios_once_and_a_judge_rewards_the_answers(program, capsys):
    asked = []
    for steps in ("1", "2"):
        run, requests = program(longer_each_step, "--writer", "writer", "--steps", steps)
        asked.append([request["model"] for request in requests])
    assert asked[0].count("writer") == 8
    assert "writer" not in asked[1]
    rows = [row.metrics for row in run.rows(split="train") if "reward/mean" in row.metrics]
    assert [row["reward/mean"] for row in rows] == [0.5, 1.0]
    assert asked[1].count("gpt-4.1-mini") == 4 + 8
    printed = capsys.readouterr().out
    assert "step 2 is better in 8 of 8 new scenarios, with a mean score of 1.00" in printed
    state = json.loads((run.path / "state.json").read_text())
    tasks = [scenario["task"] for scenario in state["scenarios"]]
    assert tasks == [f"Why is the sky number {place} blue?" for place in range(1, 15)]
    trained = {group.metadata["scenario_id"] for step in (1, 2) for group in run.groups(step)}
    assert trained <= {scenario["id"] for scenario in state["scenarios"][8:]}


def test_the_model_itself_writes_and_the_task_is_what_it_is_given(program):
    """It writes one scenario each time that it is asked; 40 bytes of an answer are sampled."""
    seen = []

    def reply(messages, step):
        seen.append(messages)
        if "numbered list" in messages[-1]["content"]:
            return f'1. "Is {len(seen)} a number?"'
        return "It is one."

    run, _ = program(reply, "Be brief.", "--steps", "1")
    first, *_, last = seen
    assert first[0]["content"].endswith('inputs for this task: "Be brief."')
    assert last[0] == {"role": "system", "content": "Be brief."}
    assert re.fullmatch(r"Is \d+ a number\?", last[1]["content"])
    assert run.steps() == [1]


def test_a_writer_without_a_list_is_an_error_in_one_line(program, capsys):
    with pytest.raises(SystemExit) as ended:
        program(lambda messages, step: "no list")
    assert ended.value.code == 2
    assert "the writer writes no numbered list. Choose another --writer." in capsys.readouterr().err


def test_without_a_judge_it_names_what_to_set(monkeypatch, capsys):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["auto_rl.py"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert "set OPENAI_API_KEY, or OPENAI_BASE_URL to an endpoint" in capsys.readouterr().err
