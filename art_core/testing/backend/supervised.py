"""Supervised fine-tuning: a step on given conversations, and what goes on after it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from art_core.base.errors import ConfigError
from art_core.data.trajectory import Trajectory
from art_core.testing.backend.base import (
    QUESTION,
    QUESTIONS,
    BackendContractBase,
    MakeBackend,
    MakeGroups,
    MakeModel,
    registered,
    version,
)


def lessons() -> list[Trajectory]:
    """Return conversations without tokens, as a file has them."""
    texts = ("no", "one two three")
    return [
        Trajectory(messages_and_choices=[question, {"role": "assistant", "content": text}])
        for question, text in zip(QUESTIONS, texts, strict=True)
    ]


@asynccontextmanager
async def supervised(make_backend: MakeBackend, make_model: MakeModel) -> AsyncIterator[Any]:
    """Yield what `registered` yields; skip the test for a backend that has no `train_sft`."""
    async with registered(make_backend, make_model) as (backend, model):
        if not hasattr(backend, "train_sft"):
            pytest.skip("the backend has no train_sft")
        yield backend, model


class BackendSupervised(BackendContractBase):
    """The tests of supervised fine-tuning, skipped for a backend that has no `train_sft`."""

    async def test_sft_on_conversations_changes_the_weights_by_one_step_per_batch(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """Messages without tokens are enough; the new weights answer and are kept."""
        async with supervised(make_backend, make_model) as (backend, model):
            before = await self.answers(model)
            result = await model.train_sft(lessons(), batch_size=1, **self.sft_options)
            assert result.step == await backend.step(model) == 2
            assert await version(model) == 2
            after = await self.answers(model)
            if not self.weights_cannot_be_seen:
                self.assert_differ(before, after, "the base model and after SFT")
        async with registered(make_backend, make_model) as (backend, model):
            assert await backend.step(model) == 2
            if not self.weights_cannot_be_seen:
                self.assert_same(after, await self.answers(model), "a resumed model after SFT")

    async def test_sft_writes_a_row_of_canonical_metrics_with_its_cost_for_each_step(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """`loss/train` and the trained tokens are in it, and no metric of rollouts."""
        async with supervised(make_backend, make_model) as (_, model):
            result = await model.train_sft(lessons(), batch_size=1, **self.sft_options)
            taxonomy = model.plugins.taxonomy()
            for key, value in result.metrics.items():
                assert taxonomy.resolve(taxonomy.place(key, "train")) == key
                assert math.isfinite(value), f"{key} is {value}"
            row = model.run.history.last
            assert (row.seq, row.step, row.split) == (2, 2, "train")
            assert row.metrics.get("loss/train", 0) > 0
            assert row.metrics.get("data/step_trainer_tokens", 0) > 0
            assert row.metrics["data/cum/num_gradient_steps"] == 2
            assert row.metrics["data/sft_epochs"] == 1
            assert self.charged in row.metrics

    async def test_training_on_rewards_goes_on_after_sft(
        self, make_backend: MakeBackend, make_model: MakeModel, make_groups: MakeGroups
    ) -> None:
        """The next step is the one after the last of SFT."""
        async with supervised(make_backend, make_model) as (_, model):
            await model.train_sft(lessons(), **{"batch_size": 2, **self.sft_options})
            result = await self.trained(model, make_groups)
            assert result.step == 2 == await version(model)

    async def test_sft_refuses_an_unknown_option_and_trains_nothing(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """`sft_config` names the nearest; options of rewards are unknown here."""
        async with supervised(make_backend, make_model) as (backend, model):
            for option in ({"max_grad_nrm": 1.0}, {"loss_fn": "cispo"}, {"max_grad_norm": -1.0}):
                with pytest.raises(ConfigError):
                    await backend.train_sft(model, [lessons()], **option)
            assert await backend.step(model) == 0

    async def test_sft_refuses_a_conversation_without_an_answer_and_trains_nothing(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """The error comes before the first step, for a backend that has `check_sft`."""
        async with supervised(make_backend, make_model) as (backend, model):
            if not hasattr(backend, "check_sft"):
                pytest.skip("the backend has no check_sft")
            broken = Trajectory(messages_and_choices=[QUESTION])
            with pytest.raises(ConfigError, match="line 3: it has no assistant"):
                await model.train_sft([*lessons(), broken], **self.sft_options)
            assert await backend.step(model) == 0
