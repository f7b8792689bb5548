"""The endpoint of a backend: models, answers, tokens and usage."""

from __future__ import annotations

import math

import pytest

from art_core.base.errors import ConfigError
from art_core.client.scorer import Scorer
from art_core.testing.backend.base import (
    MAX_TOKENS,
    QUESTION,
    BackendContractBase,
    MakeBackend,
    MakeModel,
    registered,
    tokens,
    version,
)


class BackendEndpoint(BackendContractBase):
    """The tests of the endpoint."""

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
        """Token ids of prompt and answer, and a log-prob for each token of the answer."""
        if self.cannot_give_logprobs:
            pytest.skip("cannot_give_logprobs is stated: answers carry no tokens")
        async with registered(make_backend, make_model) as (_, model):
            answer = await tokens(model)
            assert 0 < len(answer.completion_ids) <= MAX_TOKENS

    async def test_log_probs_are_finite_and_not_above_zero(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """They are natural logarithms of probabilities, and not all of them are certain."""
        if self.cannot_give_logprobs:
            pytest.skip("cannot_give_logprobs is stated: answers carry no log-probs")
        async with registered(make_backend, make_model) as (_, model):
            answer = await tokens(model)
            assert all(math.isfinite(logprob) for logprob in answer.logprobs)
            assert all(logprob <= 0 for logprob in answer.logprobs)
            assert any(logprob < 0 for logprob in answer.logprobs)

    async def test_a_scored_text_has_the_log_probs_of_its_sampling(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """`/v1/completions` with `echo`, for teachers of distillation; a refusal is an error."""
        if self.cannot_give_logprobs:
            pytest.skip("cannot_give_logprobs is stated: answers carry no log-probs")
        async with registered(make_backend, make_model) as (_, model):
            answer = await tokens(model)
            scorer = Scorer(client=model.openai_client(), model=model.get_inference_name())
            try:
                _, found = await scorer.tried([*answer.prompt_ids, *answer.completion_ids])
            except ConfigError as error:
                pytest.skip(str(error))
            scores = found.logprobs[len(answer.prompt_ids) :]
            for place, (one, other) in enumerate(zip(answer.logprobs, scores, strict=True)):
                assert abs(one - other) <= self.logprob_tolerance, f"token {place}"

    async def test_an_answer_names_the_step_of_its_weights(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """`policy_version` of the choice is 0 before training."""
        async with registered(make_backend, make_model) as (_, model):
            assert await version(model) == 0

    async def test_the_same_greedy_request_has_the_same_answer(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """Text, tokens and log-probs, while no training happens."""
        self.can_see_weights()
        async with registered(make_backend, make_model) as (_, model):
            self.assert_same(await self.answers(model), await self.answers(model), "one step")

    async def test_a_response_has_its_usage(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """The number of tokens in prompt and answer."""
        async with registered(make_backend, make_model) as (_, model):
            completion = await model.openai_client().chat.completions.create(
                model=model.get_inference_name(),
                messages=[QUESTION],
                max_tokens=MAX_TOKENS,
            )
            assert completion.usage is not None, "the response has no usage"
            assert completion.usage.prompt_tokens > 0
            assert 0 < completion.usage.completion_tokens <= MAX_TOKENS

    async def test_an_unknown_model_name_is_not_found(
        self, make_backend: MakeBackend, make_model: MakeModel
    ) -> None:
        """The endpoint answers 404 with an OpenAI-shaped error."""
        from openai import NotFoundError

        async with registered(make_backend, make_model) as (_, model):
            with pytest.raises(NotFoundError) as caught:
                await model.openai_client().chat.completions.create(
                    model="a model that does not exist",
                    messages=[QUESTION],
                )
            assert caught.value.body
