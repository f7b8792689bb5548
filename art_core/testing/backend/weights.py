"""The weights that answer: of each step, of each model, and after a resume."""

from __future__ import annotations

import asyncio

import pytest

from art_core.data.trajectory import Trajectory, TrajectoryGroup, tokens_of
from art_core.model.trainable import TrainableModel
from art_core.testing.backend.base import (
    QUESTIONS,
    Answers,
    BackendContractBase,
    MakeBackend,
    MakeGroups,
    MakeModel,
    ask,
    difference,
    registered,
    version,
)

ANSWERS = 4


async def _halved(
    model: TrainableModel, question: dict[str, str], rewards: tuple[float, float]
) -> Trajectory:
    """Return an answer of the model as two turns of equal length with these rewards."""
    # a sampled answer may end at once
    answers = [tokens_of(await ask(model, messages=[question])) for _ in range(ANSWERS)]
    found = max(filter(None, answers), key=lambda each: len(each.completion_ids), default=None)
    assert found is not None, "choices carry prompt_token_ids, token_ids and logprobs"
    half = len(found.completion_ids) // 2
    assert half, "an answer has two tokens or more"
    turns = []
    for start in (0, half):
        sampled = slice(start, start + half)
        turn = {
            "message": {"role": "assistant", "content": ""},
            "finish_reason": "stop",
            "prompt_token_ids": [*found.prompt_ids, *found.completion_ids[:start]],
            "token_ids": list(found.completion_ids[sampled]),
            "logprobs": {"content": [{"logprob": p} for p in found.logprobs[sampled]]},
        }
        turns.append(turn)
    return Trajectory(messages_and_choices=[question, *turns], turn_rewards=list(rewards))


class BackendWeights(BackendContractBase):
    """The tests that compare greedy answers and log-probs."""

    async def test_training_changes_the_weights_that_answer(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The plain name means the newest weights, not those of the base model."""
        self.can_see_weights()
        async with registered(make_backend, make_model) as (_, model):
            base = await self.answers(model)
            await self.trained(model, make_groups)
            trained = await self.answers(model)
            self.assert_differ(base, trained, "steps 0 and 1")
            self.assert_same(trained, await self.answers(model, 1), "step 1 by both names")

    async def test_turns_of_a_conversation_have_advantages_of_their_own(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """Those of the halves of an answer cancel in their sum, and still change the weights."""
        self.can_see_weights()
        if self.cannot_give_logprobs:
            pytest.skip("cannot_give_logprobs is stated: answers carry no tokens")
        async with registered(make_backend, make_model) as (_, model):
            base = await self.answers(model)
            halves = [(1.0, 0.0), (0.0, 1.0)]
            pairs = zip(QUESTIONS, halves, strict=True)
            group = TrajectoryGroup([await _halved(model, *pair) for pair in pairs])
            await model.train([group], **{**self.train_options, "discount": 0.0})
            trained = await self.answers(model)
            self.assert_differ(base, trained, "before and after turns with different rewards")

    async def _answers_of_two_steps(
        self, model: TrainableModel, make_groups: MakeGroups
    ) -> list[Answers]:
        """Train two steps; return the answers before them and after each."""
        seen = [await self.answers(model)]
        for _ in range(2):
            await self.trained(model, make_groups)
            seen.append(await self.answers(model))
        return seen

    async def test_older_steps_keep_their_weights(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """An evaluation may ask for any step with a checkpoint, and for the untrained weights."""
        self.can_see_weights()
        async with registered(make_backend, make_model) as (_, model):
            seen = await self._answers_of_two_steps(model, make_groups)
            self.assert_differ(seen[1], seen[2], "steps 1 and 2")
            for step in (1, 0, 2, 1):
                assert await version(model, step) == step
                self.assert_same(seen[step], await self.answers(model, step), f"step {step}")

    async def test_a_new_backend_goes_on_from_the_last_checkpoint(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The step and the checkpoints outlive the process, and the next step follows."""
        async with registered(make_backend, make_model) as (_, model):
            await self.trained(model, make_groups)
        async with registered(make_backend, make_model) as (backend, model):
            assert await backend.step(model) == 1
            assert (await backend.checkpoints(model))[-1].step == 1
            assert await version(model) == 1
            assert (await self.trained(model, make_groups)).step == 2

    async def test_a_new_backend_has_the_weights_of_every_step(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Greedy answers and log-probs are those from before the resume."""
        self.can_see_weights()
        async with registered(make_backend, make_model) as (_, model):
            seen = await self._answers_of_two_steps(model, make_groups)
        self.assert_differ(seen[0], seen[2], "steps 0 and 2")
        async with registered(make_backend, make_model) as (_, model):
            self.assert_same(seen[2], await self.answers(model), "the newest step")
            for step in (0, 1, 2):
                self.assert_same(seen[step], await self.answers(model, step), f"step {step}")

    async def test_a_new_backend_trains_the_weights_of_the_last_checkpoint(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """A step on equal rewards, which learns nothing, leaves the weights as they were: so it
        does after a resume if it did before.
        """
        self.can_see_weights()
        async with registered(make_backend, make_model) as (_, model):
            base = await self.answers(model)
            await self.trained(model, make_groups)
            trained = await self.answers(model)
            self.assert_differ(base, trained, "steps 0 and 1")
            await self.trained(model, make_groups, (1.0, 1.0))
            unchanged = await self.answers(model)
        if difference(trained, unchanged, self.logprob_tolerance):
            self.state(
                "a step on equal rewards changes the weights: what a resumed step trains "
                "was not compared"
            )
            return
        async with registered(make_backend, make_model) as (_, model):
            await self.trained(model, make_groups, (1.0, 1.0))
            self.assert_same(trained, await self.answers(model), "a step that learned nothing")

    async def test_a_model_that_was_unregistered_comes_back_with_its_weights(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Idle models are freed this way, and a model that is not registered may be, too."""
        async with registered(make_backend, make_model) as (backend, model):
            await self.trained(model, make_groups)
            seen = await self.answers(model)
            await backend.unregister(model)
            await backend.unregister(model)
            await model.register(backend)
            assert await backend.step(model) == await version(model) == 1
            if not self.weights_cannot_be_seen:
                self.assert_same(seen, await self.answers(model), "a model that came back")
            assert (await self.trained(model, make_groups)).step == 2

    async def test_a_model_may_be_registered_twice(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """A cell of a notebook runs again: name, step and weights stay."""
        async with registered(make_backend, make_model) as (backend, model):
            await self.trained(model, make_groups)
            name, seen = model.get_inference_name(), await self.answers(model)
            await model.register(backend)
            assert model.get_inference_name() == name
            assert await backend.step(model) == await version(model) == 1
            if not self.weights_cannot_be_seen:
                self.assert_same(seen, await self.answers(model), "a model registered twice")

    async def test_two_models_are_trained_and_served_at_once(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Each has its own step and its own name."""
        async with (
            registered(make_backend, make_model) as (backend, model),
            self.beside(backend, model) as other,
        ):
            assert other.get_inference_name() != model.get_inference_name()
            await self.trained(model, make_groups)
            both = (self.trained(each, make_groups) for each in (model, other))
            await asyncio.gather(*both)
            assert [await backend.step(m) for m in (model, other)] == [2, 1]
            assert [await version(m) for m in (model, other)] == [2, 1]

    async def test_two_models_keep_their_own_weights(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """Training one does not change the other, also not after a resume."""
        self.can_see_weights()
        async with registered(make_backend, make_model) as (backend, model):
            for _ in range(2):
                await self.trained(model, make_groups)
            mine, first = await self.answers(model), await self.answers(model, 1)
            async with self.beside(backend, model) as other:
                base = await self.answers(other)
                self.assert_differ(mine, base, "a trained model and a new one")
                self.assert_same(mine, await self.answers(model), "a model beside a new one")
                await self.trained(other, make_groups, (1.0, 0.0))
                others = await self.answers(other)
                self.assert_differ(mine, others, "two models")
                self.assert_same(mine, await self.answers(model), "a model beside another")
                self.assert_same(first, await self.answers(model, 1), "step 1 beside another")
        async with (
            registered(make_backend, make_model) as (backend, model),
            self.beside(backend, model) as other,
        ):
            self.assert_same(mine, await self.answers(model), "the first of two models")
            self.assert_same(first, await self.answers(model, 1), "step 1 of the first model")
            self.assert_same(others, await self.answers(other), "the second of two models")
            self.assert_same(base, await self.answers(other, 0), "step 0 of the second model")
