"""RULER as the only reward: a judge that prefers lower-case letters teaches a tiny model to write
them, and the run's dollars are those of hand arithmetic.
"""

from __future__ import annotations

import json
import re

import pytest
from judge_server import USAGE, judging

import art_core as art

STEPS, ATTEMPTS = 7, 32
QUESTION = {"role": "user", "content": "Say something."}
PROMPT_USD, ANSWER_USD = 2.0, 8.0
CALL_USD = (
    USAGE["prompt_tokens"] * PROMPT_USD + USAGE["completion_tokens"] * ANSWER_USD
) / 1_000_000


def lower_case(text: str) -> float:
    return sum("a" <= letter <= "z" for letter in text) / 8


def prefers_lower_case(request):
    prompt = request["messages"][1]["content"]
    shown = re.findall(r'<attempt id="(\d+)">\n(.*?)\n</attempt>', prompt, re.DOTALL)
    scores = [
        {"id": i, "explanation": "", "score": lower_case(json.loads(text).get("content", ""))}
        for i, text in shown
    ]
    return json.dumps({"scores": scores})


@pytest.mark.torch
async def test_a_run_whose_only_reward_is_ruler_learns_and_its_dollars_are_right(
    tiny_directory, tmp_path
):
    backend = art.backend(
        "local", device="cpu", dtype="float32", full_finetune=True, progress=False
    )
    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    prices = {"prompt_per_million": PROMPT_USD, "completion_per_million": ANSWER_USD}
    model.metrics_builder().register_model_pricing("judge-1", **prices)

    async def rollout():
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=[QUESTION], max_tokens=8
        )
        return art.Trajectory(messages_and_choices=[QUESTION, completion.choices[0]])

    means = []
    with judging(prefers_lower_case) as server:
        judge = art.Judge(model="judge-1", base_url=server.url, source="judge/ruler")
        for _ in range(STEPS):
            groups = await art.gather_trajectory_groups(
                [art.TrajectoryGroup(rollout() for _ in range(ATTEMPTS))],
                after_each=lambda group: art.ruler_score_group(group, judge),
                pbar_desc=None,
            )
            means.append(sum(groups[0].rewards) / ATTEMPTS)
            await model.train(
                groups, learning_rate=1e-2, mask_truncated=False, save_checkpoint=False
            )
        assert len(server.requests) == STEPS
    metrics = model.run.history.last.metrics
    assert means[-1] - means[0] >= 0.2, means
    assert metrics["costs/cum/train/judge/ruler"] == pytest.approx(STEPS * CALL_USD)
    assert metrics["reward/independent_reward"] == 0
    await model.close()
    await backend.close()


@pytest.mark.torch
async def test_a_served_model_judges_and_what_it_can_not_do_is_an_error(tiny_directory, tmp_path):
    """An untrained model with a context of 512 tokens cannot judge; the error has the reason."""
    backend = art.backend("local", device="cpu", progress=False)
    judge = art.TrainableModel(
        name="judge", project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
    )
    await judge.register(backend)
    answers = [{"role": "assistant", "content": text} for text in ("yes", "no")]
    group = art.TrajectoryGroup(
        art.Trajectory(messages_and_choices=[QUESTION, answer]) for answer in answers
    )
    asked = art.Judge(model=judge, options={"max_tokens": 4})
    with pytest.raises(
        art.RewardError, match="the judge judge could not be asked: .* holds 512 tokens"
    ):
        await art.ruler_score_group(group, asked)
    assert await art.ruler_score_group(group, asked, swallow_exceptions=True) is None
    await judge.close()
    await backend.close()
