"""Greedy answers to some questions, with log-probs: they show which weights answered."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from art_core.data.choice import tokens_of
from art_core.model.trainable import TrainableModel
from art_core.testing.backend.base import MAX_TOKENS, QUESTION, BackendKit

QUESTIONS = (QUESTION, {"role": "user", "content": "Count to three."})


@attrs.frozen
class Answer:
    """A text, and the log-prob of each of its tokens; none where the endpoint gives none."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


Answers = tuple[Answer, ...]


def difference(one: Answers, other: Answers, tolerance: float) -> str | None:
    """Return the first difference between answers, in words; None if there is none."""
    for before, after in zip(one, other, strict=True):
        if (before.text, before.token_ids) != (after.text, after.token_ids):
            return f"the greedy answer was {before.text!r} and is {after.text!r}"
        pairs = zip(before.logprobs, after.logprobs, strict=True)
        for place, (old, new) in enumerate(pairs):
            if not abs(old - new) <= tolerance:
                return f"the log-prob of token {place} was {old:.6f} and is {new:.6f}"
    return None


class AnswersKit(BackendKit):
    """Asks, and compares answers."""

    async def answers(self, model: TrainableModel, step: int | None = None) -> Answers:
        """Return the greedy answers of a step's weights, or of the newest."""
        return tuple([await self._answer(model, step, question) for question in QUESTIONS])

    async def _answer(
        self, model: TrainableModel, step: int | None, question: dict[str, str]
    ) -> Answer:
        request: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0}
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(step),
            messages=[question],  # type: ignore[list-item]
            **request,
        )
        choice = completion.choices[0]
        text = choice.message.content or ""
        if self.cannot_give_logprobs:
            return Answer(text)
        found = tokens_of(choice)
        if found is None:
            pytest.fail(
                "the answer has no prompt_token_ids, token_ids or logprobs. If the endpoint can't "
                "give them, state cannot_give_logprobs = True in the class."
            )
        return Answer(text, found.completion_ids, found.logprobs)

    def can_see_weights(self) -> None:
        """Skip the test if the author has stated that weights can't be seen."""
        if self.weights_cannot_be_seen:
            pytest.skip("weights_cannot_be_seen is stated: answers were not compared")

    def assert_same(self, before: Answers, after: Answers, what: str) -> None:
        """Fail if answers differ; `what` ends the sentence "the weights of ..."."""
        found = difference(before, after, self.logprob_tolerance)
        assert found is None, f"the weights of {what} are not the same: {found}"

    def assert_differ(self, one: Answers, other: Answers, what: str) -> None:
        """Fail if answers are the same; `what` names the two weights."""
        if difference(one, other, self.logprob_tolerance) is None:
            pytest.fail(
                f"the answers and log-probs of {what} are the same. Either the wrong weights "
                "answer, or training changes them too little to see: raise the learning rate in "
                "train_options, or state weights_cannot_be_seen = True in the class."
            )
