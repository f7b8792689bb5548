"""What every backend does, test by test."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest

from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.errors import ArtError, ConfigError
from art_core.testing.backend.kit import (
    MAX_TOKENS,
    QUESTION,
    MakeBackend,
    MakeGroups,
    MakeModel,
    attempts,
    plugins_with_prices,
    registered,
    tokens,
)
from art_core.trainable import TrainableModel


@pytest.mark.asyncio
class BackendContract:
    """Fixture to give: `make_backend`, a function that returns a new backend.

    `make_model` returns a model of the same run each time; `make_groups(model, rewards)` gathers a
    group through the model's endpoint; `train_options` go to every training step; `charged` is the
    leaf of what a step costs.
    """

    base_model: ClassVar[str] = "base"
    charged: ClassVar[str] = "costs/gpu"
    train_options: ClassVar[dict[str, Any]] = {"mask_truncated": False}

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        """Return the backend's class, or a function that makes one."""
        raise AssertionError("give the fixture make_backend")

    @pytest.fixture
    def make_model(self, tmp_path: Path) -> MakeModel:
        """Return a function that opens the same run again and again."""
        return lambda: TrainableModel(
            name="agent",
            project="contract",
            base_model=self.base_model,
            base_path=tmp_path,
            sinks=[],
            plugins=plugins_with_prices(),
        )

    def another(self, model: TrainableModel) -> TrainableModel:
        """Return a second model beside one."""
        return TrainableModel(
            name=f"{model.name}-2",
            project=model.project,
            base_model=model.base_model,
            base_path=model.base_path,
            sinks=[],
            plugins=model.plugins,
        )

    @pytest.fixture
    def make_groups(self) -> MakeGroups:
        """Return a function that gathers a group with the given rewards."""
        return attempts

    async def test_a_registered_model_is_listed_by_its_endpoint(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """`/v1/models` names the model."""
        async with registered(make_backend, make_model) as (_, model):
            listed = [item.id async for item in model.openai_client().models.list()]
            assert model.get_inference_name() in listed

    async def test_an_answer_carries_the_engines_tokens(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """Token ids of prompt and answer, log-probs of at most 0, and the weights' step."""
        async with registered(make_backend, make_model) as (_, model):
            answer = await tokens(model)
            assert 0 < len(answer.completion_ids) <= MAX_TOKENS
            assert all(logprob <= 0 for logprob in answer.logprobs)
            assert answer.policy_version == 0

    async def test_an_unknown_model_name_is_not_found(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """The endpoint answers 404 with an OpenAI-shaped error."""
        from openai import NotFoundError

        async with registered(make_backend, make_model) as (_, model):
            with pytest.raises(NotFoundError) as caught:
                await model.openai_client().chat.completions.create(
                    model="a model of nobody's", messages=[QUESTION]
                )
            assert caught.value.body

    async def test_training_advances_the_step_and_reports_canonical_metrics(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Every metric is finite, and its name one that the catalogue accepts and has not
        replaced.
        """
        async with registered(make_backend, make_model) as (backend, model):
            assert await backend.step(model) == 0
            result = await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            assert result.step == await backend.step(model) == 1
            taxonomy = model.plugins.taxonomy()
            for key, value in result.metrics.items():
                assert taxonomy.resolve(taxonomy.place(key, "train")) == key
                assert math.isfinite(value)

    async def test_the_newest_weights_are_served_and_a_second_step_follows(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The plain name means the newest weights, `name@step` those of a step."""
        async with registered(make_backend, make_model) as (_, model):
            for step in (1, 2):
                groups = await make_groups(model, (0.0, 1.0))
                assert (await model.train(groups, **self.train_options)).step == step
                assert (await tokens(model)).policy_version == step
                assert (await tokens(model, step)).policy_version == step

    async def test_a_new_backend_goes_on_from_the_last_checkpoint(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The step, the checkpoints and the weights outlive the process."""
        async with registered(make_backend, make_model) as (_, model):
            await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
        async with registered(make_backend, make_model) as (backend, model):
            assert await backend.step(model) == 1
            assert (await backend.checkpoints(model))[-1].step == 1
            assert (await tokens(model)).policy_version == 1
            groups = await make_groups(model, (0.0, 1.0))
            assert (await model.train(groups, **self.train_options)).step == 2

    async def test_checkpoints_are_deleted_but_for_those_to_keep_and_the_newest(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """They are listed oldest first, and the deleted ones are told."""
        async with registered(make_backend, make_model) as (backend, model):
            for _ in range(3):
                await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            before = [checkpoint.step for checkpoint in await backend.checkpoints(model)]
            assert before == sorted(before) and before[-3:] == [1, 2, 3]
            deleted = await backend.delete_checkpoints(model, {1})
            assert sorted(deleted) == [step for step in before if step not in (1, 3)]
            assert [c.step for c in await backend.checkpoints(model)] == [1, 3]
            assert await backend.step(model) == 3

    async def test_an_unknown_option_is_refused_and_nothing_is_trained(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """`TrainConfig.of` names the nearest option."""
        async with registered(make_backend, make_model) as (backend, model):
            groups = await make_groups(model, (0.0, 1.0))
            with pytest.raises(ConfigError, match="learning_rate"):
                await model.train(groups, learning_rat=1e-5)
            assert await backend.step(model) == 0

    async def test_what_training_used_is_charged(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """`model.charge` turns devices and seconds into `costs/gpu` of the row; a service that is
        paid by the token has another leaf.

        A backend that takes some devices for free is given a price in `make_backend`.
        """
        async with registered(make_backend, make_model) as (_, model):
            await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            assert self.charged in model.run.history.last.metrics

    async def test_groups_without_spread_advance_the_step_too(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """There is nothing to learn, and the loop goes on."""
        async with registered(make_backend, make_model) as (backend, model):
            result = await model.train(await make_groups(model, (1.0, 1.0)), **self.train_options)
            assert result.step == await backend.step(model) == 1
            assert (await tokens(model)).policy_version == 1

    async def test_older_steps_are_served_beside_the_newest(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """An evaluation may ask for any step with a checkpoint, and for the untrained weights."""
        async with registered(make_backend, make_model) as (_, model):
            for _ in range(2):
                await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            asked = [(await tokens(model, step)).policy_version for step in (1, 0, 2, 1)]
            assert asked == [1, 0, 2, 1]

    async def test_two_models_are_trained_and_served_at_once(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Each has its own weights, its own step and its own name."""
        async with registered(make_backend, make_model) as (backend, model):
            other = self.another(model)
            await other.register(backend)
            assert other.get_inference_name() != model.get_inference_name()
            await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            both = await asyncio.gather(make_groups(model, (0.0, 1.0)), make_groups(other, (0, 1)))
            await asyncio.gather(
                model.train(both[0], **self.train_options),
                other.train(both[1], **self.train_options),
            )
            assert [await backend.step(m) for m in (model, other)] == [2, 1]
            assert [(await tokens(m)).policy_version for m in (model, other)] == [2, 1]
            await other.close()

    async def test_a_model_that_was_unregistered_comes_back_at_its_checkpoint(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Idle models are put to sleep this way; a model that is not registered may be, too."""
        async with registered(make_backend, make_model) as (backend, model):
            await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            await backend.unregister(model)
            await backend.unregister(model)
            await model.register(backend)
            assert await backend.step(model) == 1
            assert (await tokens(model)).policy_version == 1
            groups = await make_groups(model, (0.0, 1.0))
            assert (await model.train(groups, **self.train_options)).step == 2

    async def test_a_step_cancelled_in_the_middle_is_done_or_not_done(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The weights are those of a whole step, and the next step follows it."""
        async with registered(make_backend, make_model) as (backend, model):
            groups = await make_groups(model, (0.0, 1.0))
            step = asyncio.create_task(model.train(groups, **self.train_options))
            await asyncio.sleep(0.02)
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
            result = await model.train(await make_groups(model, (0.0, 1.0)), **self.train_options)
            assert result.step == await backend.step(model)
            assert result.step in (1, 2)
            assert (await tokens(model)).policy_version == result.step

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

    async def test_a_backend_may_be_closed_twice(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """A second close does nothing, and so does one of a backend that was never used."""
        async with registered(make_backend, make_model) as (backend, _):
            await backend.close()
        unused = make_backend()
        await unused.close()
