"""The base of the contract: fixtures and settings, gathered groups, and greedy answers, which show
the weights.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from art_core.backends import TrainResult
from art_core.data.gather import gather_trajectory_groups
from art_core.data.trajectory import ChoiceTokens, Trajectory, TrajectoryGroup, tokens_of
from art_core.hooks.hookspecs import hookimpl
from art_core.hooks.host import Plugins
from art_core.model.backend import Backend
from art_core.model.trainable import TrainableModel
from art_core.testing.statements import Contract, Setting

MakeBackend = Callable[[], Backend]
MakeModel = Callable[[], TrainableModel]
MakeGroups = Callable[[TrainableModel, Sequence[float]], Awaitable[list[TrajectoryGroup]]]
QUESTION = {"role": "user", "content": "Say yes or no."}
MAX_TOKENS = 8


QUESTIONS = (QUESTION, {"role": "user", "content": "Count to three."})


@attrs.frozen
class Answer:
    """A text, and the log-prob of each of its tokens; none if the endpoint gives none."""

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


class PricesEveryDevice:
    """A plugin: one dollar per hour, so that every charge is in the log."""

    @hookimpl
    def art_gpu_rate(self, device: str) -> float:
        """One dollar."""
        del device
        return 1.0


def plugins_with_prices() -> Plugins:
    """Return the installed plugins, and one that prices every device."""
    plugins = Plugins.discover()
    plugins.register(PricesEveryDevice(), "contract prices")
    return plugins


async def ask(model: TrainableModel, step: int | None = None, **more: Any) -> Any:
    """Return the model's answer to a question, as the client gives it."""
    request: dict[str, Any] = {"messages": [QUESTION], "max_tokens": MAX_TOKENS, **more}
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(step), **request
    )
    return completion.choices[0]


async def tokens(model: TrainableModel, step: int | None = None) -> ChoiceTokens:
    """Return the engine's tokens of an answer."""
    found = tokens_of(await ask(model, step))
    assert found is not None, "choices carry prompt_token_ids, token_ids and logprobs"
    return found


async def version(model: TrainableModel, step: int | None = None) -> int | None:
    """Return the step of the weights that answer, as the endpoint gives it."""
    found: int | None = getattr(await ask(model, step), "policy_version", None)
    return found


async def attempts(model: TrainableModel, rewards: Sequence[float]) -> list[TrajectoryGroup]:
    """Return one gathered group of answers with these rewards."""

    async def rollout(reward: float) -> Trajectory:
        return Trajectory(messages_and_choices=[QUESTION, await ask(model)], reward=reward)

    group = TrajectoryGroup(rollout(reward) for reward in rewards)
    return await gather_trajectory_groups([group], pbar_desc=None, max_exceptions=0)


@asynccontextmanager
async def registered(make_backend: MakeBackend, make_model: MakeModel) -> AsyncIterator[Any]:
    """Yield a new backend, and a model that it serves; close both."""
    backend, model = make_backend(), make_model()
    try:
        await model.register(backend)
        yield backend, model
    finally:
        await model.close()
        await backend.close()


@pytest.mark.asyncio
class BackendContractBase(Contract):
    """The fixtures and settings of `BackendContract`."""

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("base_model", "the base model's name or path, as the backend takes it"),
        Setting("train_options", "the options of every training step in a test"),
        Setting("sft_options", "the options of supervised fine-tuning in a test"),
        Setting("charged", "the key in the row under which the cost of a step is booked"),
        Setting(
            "logprob_tolerance",
            "by how much log-probs of the same token and the same weights may differ; between "
            "different weights, some must differ by more. For an engine that computes in "
            "bfloat16: about `0.05`",
        ),
        Setting(
            "cannot_give_logprobs",
            "the endpoint answers without token ids and log-probs",
            "token ids and log-probs were not compared",
        ),
        Setting(
            "weights_cannot_be_seen",
            "greedy answers and log-probs do not show which weights answered, or are not always "
            "the same. The tests that compare weights are skipped",
            "no test saw which weights answered",
        ),
        Setting(
            "settle_s",
            "for how many seconds a test waits for a cancelled step that goes on by mistake",
        ),
    )
    base_model: ClassVar[str] = "base"
    train_options: ClassVar[dict[str, Any]] = {"mask_truncated": False}
    sft_options: ClassVar[dict[str, Any]] = {}
    charged: ClassVar[str] = "costs/gpu"
    logprob_tolerance: ClassVar[float] = 1e-4
    cannot_give_logprobs: ClassVar[bool] = False
    weights_cannot_be_seen: ClassVar[bool] = False
    settle_s: ClassVar[float] = 0.2

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

    @asynccontextmanager
    async def beside(
        self, backend: Backend, model: TrainableModel
    ) -> AsyncIterator[TrainableModel]:
        """Register a second model; close it at the end of the block."""
        other = self.another(model)
        try:
            await other.register(backend)
            yield other
        finally:
            await other.close()

    @pytest.fixture
    def make_groups(self) -> MakeGroups:
        """Return a function that gathers a group with the given rewards."""
        return attempts

    async def trained(
        self,
        model: TrainableModel,
        make_groups: MakeGroups,
        rewards: Sequence[float] = (0.0, 1.0),
        **options: Any,
    ) -> TrainResult:
        """Gather a group with these rewards and train on it, with the contract's options."""
        groups = await make_groups(model, rewards)
        return await model.train(groups, **{**self.train_options, **options})

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
