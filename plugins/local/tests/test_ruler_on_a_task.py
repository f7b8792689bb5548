"""RULER as the only reward of the yes/no/maybe task: a scripted judge prefers "maybe" to "no" to
"yes", SmolLM2 learns it, and the run's dollars are those of hand arithmetic.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from judge_server import USAGE, judging

import art_core as art

pytestmark = [pytest.mark.judges, pytest.mark.torch, pytest.mark.timeout(1800)]

STEPS, ATTEMPTS = 12, 8
PROMPT_USD, ANSWER_USD = 2.0, 8.0
CALL_USD = (
    USAGE["prompt_tokens"] * PROMPT_USD + USAGE["completion_tokens"] * ANSWER_USD
) / 1_000_000
RANKS = {"maybe": 3, "no": 2, "yes": 1}


def example():
    file = Path(__file__).parents[3] / "examples" / "yes_no_maybe.py"
    spec = importlib.util.spec_from_file_location("yes_no_maybe", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prefers_maybe(request):
    """Score attempts relative to each other: the best of a group gets 1, the worst 0."""
    prompt = request["messages"][1]["content"]
    shown = re.findall(r'<attempt id="(\d+)">\n(.*?)\n</attempt>', prompt, re.DOTALL)
    ranks = {i: RANKS.get(json.loads(text).get("content", "").strip(), 0) for i, text in shown}
    low, high = min(ranks.values()), max(ranks.values())
    scores = [
        {"id": i, "explanation": "", "score": (rank - low) / (high - low or 1)}
        for i, rank in ranks.items()
    ]
    return json.dumps({"scores": scores})


@pytest.fixture
async def smol(tmp_path):
    """The example, a backend, and its model."""
    task = example()
    backend = art.backend("local", engine="auto", lora_rank=8, lora_alpha=16, progress=False)
    model = art.TrainableModel(
        name="smol", project="p", base_model=task.MODEL, base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    yield task, model
    await model.close()
    await backend.close()


async def test_the_task_is_learned_from_a_judge_and_its_dollars_are_right(smol):
    task, model = smol
    prices = {"prompt_per_million": PROMPT_USD, "completion_per_million": ANSWER_USD}
    model.metrics_builder().register_model_pricing("judge-1", **prices)
    own = []
    with judging(prefers_maybe) as server:
        judge = art.Judge(model="judge-1", base_url=server.url, source="judge/ruler")
        for _ in range(STEPS):
            groups = await art.gather_trajectory_groups(
                (
                    art.TrajectoryGroup(task.rollout(model, question) for _ in range(ATTEMPTS))
                    for question in task.QUESTIONS
                ),
                after_each=lambda group: art.ruler_score_group(group, judge),
                pbar_desc=None,
            )
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
            own.append(model.run.history.last.metrics["reward/independent_reward"])
        assert len(server.requests) == STEPS * len(task.QUESTIONS)
    assert own[-1] > own[0] + 0.3, own
    totals = model.run.history.last.metrics
    assert totals["costs/cum/train/judge/ruler"] == pytest.approx(
        STEPS * len(task.QUESTIONS) * CALL_USD
    )


async def test_a_small_served_model_judges_in_the_right_form_or_is_refused_with_the_reason(smol):
    task, model = smol
    answers = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    group = art.TrajectoryGroup(
        art.Trajectory(messages_and_choices=[*task.asked(task.QUESTIONS[0]), answer])
        for answer in answers
    )
    judge = art.Judge(model=model, options={"temperature": 0, "max_tokens": 120})
    judged, reason = None, ""
    try:
        judged = await art.ruler_score_group(group, judge)
    except art.RewardError as error:
        reason = str(error)
    if judged is None:
        assert "the judge smol gave no usable answer" in reason
        assert await art.ruler_score_group(group, judge, swallow_exceptions=True) is None
    else:
        assert all(0 <= reward <= 1 for reward in judged.rewards)
