"""RULER with ART's arguments, asked of a judge on this machine."""

from __future__ import annotations

import json

import pytest

import art
from art.rewards import ruler, ruler_score_group
from art_core import RewardError, TrainableModel
from art_core.testing.echo import EchoBackend


def verdict(messages, step: int) -> str:
    """Answer as a judge: the longer attempt is better."""
    text = messages[-1]["content"]
    if "broken" in text:
        return "no JSON"
    ids = [n for n in ("1", "2") if f'id="{n}"' in text]
    scores = [{"id": n, "explanation": f"e{n}", "score": int(n) / 4} for n in ids]
    return json.dumps({"scores": scores})


@pytest.fixture
async def judge(tmp_path):
    model = TrainableModel(
        name="judge", project="demo", base_model="echo", base_path=tmp_path, sinks=[]
    )
    await model.register(EchoBackend(reply=verdict))
    yield model
    await model.close()
    await model.backend.close()


def group_of(*answers: str) -> art.TrajectoryGroup:
    asked = {"role": "user", "content": "Write more."}
    return art.TrajectoryGroup(
        art.Trajectory(
            messages_and_choices=[asked, {"role": "assistant", "content": answer}], reward=0.125
        )
        for answer in answers
    )


async def test_a_group_has_the_judges_scores_as_rewards(judge):
    judged = await ruler_score_group(group_of("a", "b"), judge, {"temperature": 0.5})
    assert isinstance(judged, art.TrajectoryGroup)
    assert judged.rewards == [0.25, 0.5]
    assert [t.metrics["ruler_score"] for t in judged] == [0.25, 0.5]
    assert [t.metrics["independent_reward"] for t in judged] == [0.125, 0.125]
    assert all(isinstance(t, art.Trajectory) for t in judged)


async def test_conversations_have_scores_in_their_order(judge, capsys):
    messages = [t.messages() for t in group_of("a", "b")]
    scores = await ruler(messages, judge, rubric="Longer is better.", tools=[], debug=True)
    assert [score.score for score in scores] == [0.25, 0.5]
    assert "e2" in capsys.readouterr().out


async def test_a_judge_without_an_answer_gives_none_or_an_error(judge, caplog):
    assert await ruler_score_group(group_of("broken", "b"), judge, swallow_exceptions=True) is None
    assert "not judged" in caplog.text
    with pytest.raises(RewardError):
        await ruler_score_group(group_of("broken", "b"), judge)
