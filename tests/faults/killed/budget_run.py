"""Train with a budget, and be killed with signal 9 at a point of the second step."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import art_core as art
from art_core.budgets.run_budget import RunBudget
from art_core.testing.echo import EchoBackend

BASE, POINT = sys.argv[1], sys.argv[2]
STEPS = [0]


def die(point: str) -> None:
    """Be killed, if this is the point and one step is trained."""
    if point == POINT and STEPS[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


class Backend(EchoBackend):
    """A step costs a dollar, whatever the clock shows."""

    async def train(self, model, groups, **options):
        """Train, or die before that."""
        die("train")
        result = await super().train(model, groups, **options)
        model.metrics_builder("train").add_cost("gpu", 1.0)
        return result


@art.track_api_cost(
    source="judge",
    provider="p",
    model_name="m",
    prompt_per_million=0.0,
    completion_per_million=1e6,
)
async def judge(question, max_tokens):
    """Cost a dollar, or die in the call."""
    die("call")
    return {"usage": {"prompt_tokens": 0, "completion_tokens": 1}}


async def rollout(model, answer):
    """Ask the model and the judge."""
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": answer}])
    done = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages()
    )
    trajectory.messages_and_choices.append(done.choices[0])
    await judge("?", max_tokens=1)
    die("rollout")
    trajectory.reward = float(answer == "yes")
    return trajectory


async def main() -> None:
    """Train three steps."""
    written = RunBudget.row_written

    def row_written(self, row):
        die("row")
        written(self, row)
        STEPS[0] = row.step

    RunBudget.row_written = row_written
    model = art.TrainableModel(
        name="m",
        project="p",
        base_model="echo-base",
        base_path=BASE,
        sinks=[],
        budget=art.budget(usd=1000, per_step=100),
    )
    await model.register(Backend())
    for _ in range(3):
        groups = await art.gather_trajectory_groups(
            [art.TrajectoryGroup(rollout(model, answer) for answer in ("yes", "no"))],
            pbar_desc=None,
        )
        await model.train(groups)


asyncio.run(main())
