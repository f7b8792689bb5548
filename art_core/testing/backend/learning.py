"""Learning: reward rises with the advantages, and does not rise when rewards are inverted."""

from __future__ import annotations

from typing import Any, ClassVar

from art_core.data.gather import gather_trajectory_groups
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.model.trainable import TrainableModel
from art_core.testing.backend.base import (
    QUESTION,
    BackendContractBase,
    MakeBackend,
    MakeModel,
    ask,
    registered,
)
from art_core.testing.statements import Setting


class LearningContract(BackendContractBase):
    """Trains on a reward of the author's: subclass it, give `make_backend` and `reward`."""

    settings: ClassVar[tuple[Setting, ...]] = (
        *BackendContractBase.settings,
        Setting("learning_steps", "how many steps are trained"),
        Setting("attempts_per_step", "how many answers are rewarded in a step"),
        Setting("rise", "by how much the mean reward must rise from the first step to the last"),
        Setting("answer_tokens", "the token limit of each answer"),
    )
    learning_steps: ClassVar[int] = 12
    attempts_per_step: ClassVar[int] = 32
    rise: ClassVar[float] = 0.2
    answer_tokens: ClassVar[int] = 8

    def reward(self, choice: Any) -> float:
        """Return the reward of an answer, from 0 to 1."""
        raise NotImplementedError("give the method reward(choice)")

    async def test_reward_rises_with_training(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """By at least `rise`."""
        first, last = await self._rewards(make_backend, make_model, sign=1.0)
        assert last - first >= self.rise

    async def test_reward_does_not_rise_when_rewards_are_inverted(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """A rise here would have another cause than the advantages."""
        first, last = await self._rewards(make_backend, make_model, sign=-1.0)
        assert last - first < self.rise / 2

    async def _rewards(
        self, make_backend: MakeBackend, make_model: MakeModel, sign: float
    ) -> tuple[float, float]:
        means = []
        async with registered(make_backend, make_model) as (_, model):
            for _ in range(self.learning_steps):
                group = TrajectoryGroup(
                    self._attempt(model, sign) for _ in range(self.attempts_per_step)
                )
                groups = await gather_trajectory_groups([group], pbar_desc=None)
                means.append(sign * sum(groups[0].rewards) / len(groups[0].rewards))
                await model.train(groups, **self.train_options)
        return means[0], means[-1]

    async def _attempt(self, model: TrainableModel, sign: float) -> Trajectory:
        choice = await ask(model, max_tokens=self.answer_tokens)
        reward = sign * self.reward(choice)
        return Trajectory(messages_and_choices=[QUESTION, choice], reward=reward)
