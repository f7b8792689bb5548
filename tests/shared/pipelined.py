"""An echo that waits, and attempts at it, for tests of pipelines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs

import art_core as art
from art_core.testing.echo import EchoBackend


async def _at_once(step: int) -> None:
    del step


@attrs.define(kw_only=True, eq=False)
class WaitingBackend(EchoBackend):
    """An echo that waits before the step of a number."""

    before_step: Callable[[int], Awaitable[None]] = _at_once
    trained: list[list[str]] = attrs.field(factory=list)

    async def train(self, model: Any, groups: Any, **options: Any) -> art.TrainResult:
        await self.before_step(len(self.trained) + 1)
        self.trained.append([group.metadata["scenario_id"] for group in groups])
        return await super().train(model, groups, **options)


async def ask(model: art.TrainableModel, scenario: Any, turns: int = 1) -> art.Trajectory:
    """Make an attempt of some turns, whose reward differs from that of the one before."""
    trajectory = art.Trajectory(messages_and_choices=[])
    for _ in range(turns):
        trajectory.messages_and_choices.append({"role": "user", "content": f"{scenario}"})
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages()
        )
        trajectory.messages_and_choices.append(completion.choices[0])
    ask.calls = getattr(ask, "calls", 0) + 1
    trajectory.reward = float(ask.calls)
    return trajectory


def train_rows(model: art.TrainableModel) -> list[art.MetricsRow]:
    return [
        row
        for row in art.open_run(model.run_dir).rows(split="train")
        if "reward/mean" in row.metrics
    ]
