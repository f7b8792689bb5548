"""A training step: its number, metrics, options, cost and checkpoint."""

from __future__ import annotations

import math
from typing import Any

import pytest

from art_core.base.errors import ArtError, ConfigError
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.rl.schedules import Schedule
from art_core.testing.backend.base import (
    QUESTION,
    BackendContractBase,
    MakeBackend,
    MakeGroups,
    MakeModel,
    registered,
    version,
)


class BackendTraining(BackendContractBase):
    """The tests of a training step."""

    async def test_each_training_step_advances_the_step_by_one(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The result, `backend.step` and the endpoint agree."""
        async with registered(make_backend, make_model) as (backend, model):
            assert await backend.step(model) == 0
            for step in (1, 2):
                result = await self.trained(model, make_groups)
                assert result.step == await backend.step(model) == step
                assert await version(model) == await version(model, step) == step

    async def test_training_reports_canonical_metrics(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Every metric has a name of the catalogue, its newest one, and a finite value."""
        async with registered(make_backend, make_model) as (_, model):
            result = await self.trained(model, make_groups)
            taxonomy = model.plugins.taxonomy()
            for key, value in result.metrics.items():
                assert taxonomy.resolve(taxonomy.place(key, "train")) == key
                assert math.isfinite(value), f"{key} is {value}"

    async def test_an_unknown_option_is_refused_and_nothing_is_trained(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """`TrainConfig.of` names the nearest option."""
        async with registered(make_backend, make_model) as (backend, model):
            groups = await make_groups(model, (0.0, 1.0))
            with pytest.raises(ConfigError, match="learning_rate"):
                await model.train(groups, learning_rat=1e-5)
            assert await backend.step(model) == 0

    async def test_an_invalid_value_of_an_option_is_refused_and_nothing_is_trained(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """`TrainConfig.of` checks the values."""
        async with registered(make_backend, make_model) as (backend, model):
            groups = await make_groups(model, (0.0, 1.0))
            for option in ({"learning_rate": -1.0}, {"loss_fn": "no such loss"}):
                with pytest.raises(ConfigError):
                    await model.train(groups, **{**self.train_options, **option})
            assert await backend.step(model) == 0

    async def test_a_schedule_gives_each_step_its_rate(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The rate that was used is in the row, also of a run that goes on in another process."""
        schedule = Schedule(1e-4, "linear", total_steps=4, warmup_steps=1, final=1e-5)
        rates = []
        for _ in range(2):
            async with registered(make_backend, make_model) as (_, model):
                await self.trained(model, make_groups, learning_rate=schedule)
                rates.append(model.run.history.last.metrics["loss/learning_rate"])
        assert rates == pytest.approx([1e-4, 1e-4])
        async with registered(make_backend, make_model) as (_, model):
            await self.trained(model, make_groups, learning_rate=lambda step: step * 1e-5)
            assert model.run.history.last.metrics["loss/learning_rate"] == pytest.approx(2e-5)

    async def test_each_option_of_the_optimizer_is_used_or_refused(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """A refusal is a ConfigError that names the option, and nothing is trained."""
        async with registered(make_backend, make_model) as (backend, model):
            options: dict[str, Any] = {
                "weight_decay": 0.01,
                "entropy_coef": 0.001,
                "optimizer": "adamw_8bit",
            }
            for name, value in options.items():
                groups = await make_groups(model, (0.0, 1.0))
                step, refusal = await backend.step(model), name
                try:
                    step = (await model.train(groups, **{**self.train_options, name: value})).step
                except ConfigError as error:
                    refusal = str(error)
                assert name in refusal, f"{name}={value!r} is refused with: {refusal}"
                assert await backend.step(model) == step, f"{name}={value!r} was refused too late"

    async def test_a_step_without_a_checkpoint_leaves_none(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """`save_checkpoint=False` has an effect: the step is served, and not kept."""
        async with registered(make_backend, make_model) as (backend, model):
            await self.trained(model, make_groups)
            result = await self.trained(model, make_groups, save_checkpoint=False)
            assert (result.step, result.checkpoint) == (2, None)
            assert [c.step for c in await backend.checkpoints(model)][-1] == 1
            assert await version(model) == 2

    async def test_what_training_used_is_charged(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """`model.charge` turns devices and seconds into `costs/gpu` of the row; a service that is
        paid by the token has another key, the setting `charged`.

        A backend that takes some devices for free is given a price in `make_backend`.
        """
        async with registered(make_backend, make_model) as (_, model):
            await self.trained(model, make_groups)
            assert self.charged in model.run.history.last.metrics

    async def test_groups_without_spread_advance_the_step_too(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """There is nothing to learn, and the loop goes on."""
        async with registered(make_backend, make_model) as (backend, model):
            result = await self.trained(model, make_groups, (1.0, 1.0))
            assert result.step == await backend.step(model) == 1
            assert await version(model) == 1

    async def test_rewards_that_are_no_numbers_are_refused_and_nothing_is_trained(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The next step is the first."""
        async with registered(make_backend, make_model) as (backend, model):
            groups = await make_groups(model, (0.0, 1.0))
            broken = [Trajectory(messages_and_choices=[QUESTION], reward=math.nan)]
            with pytest.raises(ArtError):
                await backend.train(model, [TrajectoryGroup([*groups[0], *broken])])
            assert await backend.step(model) == 0
            assert (await model.train(groups, **self.train_options)).step == 1

    async def test_checkpoints_are_deleted_except_those_to_keep_and_the_newest(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """They are listed oldest first, the deleted steps are returned, and kept ones answer."""
        async with registered(make_backend, make_model) as (backend, model):
            for _ in range(3):
                await self.trained(model, make_groups)
            before = [checkpoint.step for checkpoint in await backend.checkpoints(model)]
            assert before == sorted(before) and before[-3:] == [1, 2, 3]
            deleted = await backend.delete_checkpoints(model, {1})
            assert sorted(deleted) == [step for step in before if step not in (1, 3)]
            assert [c.step for c in await backend.checkpoints(model)] == [1, 3]
            assert await backend.step(model) == 3
        async with registered(make_backend, make_model) as (backend, model):
            assert [c.step for c in await backend.checkpoints(model)] == [1, 3]
            assert await version(model, 1) == 1
