"""What the contract's tests share: a model asked, groups gathered, a backend with a model in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from art_core.backends import Backend
from art_core.data.choice import ChoiceTokens, tokens_of
from art_core.data.gather import gather_trajectory_groups
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.plugins.hookspecs import hookimpl
from art_core.plugins.host import Plugins
from art_core.trainable import TrainableModel

MakeBackend = Callable[[], Backend]
MakeModel = Callable[[], TrainableModel]
MakeGroups = Callable[[TrainableModel, Sequence[float]], Awaitable[list[TrajectoryGroup]]]
QUESTION = {"role": "user", "content": "Say yes or no."}
MAX_TOKENS = 8


class PricesEveryDevice:
    """A plugin: one dollar an hour, so that every charge is seen in the log."""

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


async def ask(model: TrainableModel, step: int | None = None) -> Any:
    """Return the model's answer to a question, as the client gives it."""
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(step),
        messages=[QUESTION],  # type: ignore[list-item]
        max_tokens=MAX_TOKENS,
    )
    return completion.choices[0]


async def tokens(model: TrainableModel, step: int | None = None) -> ChoiceTokens:
    """Return the engine's tokens of an answer."""
    found = tokens_of(await ask(model, step))
    assert found is not None, "choices carry prompt_token_ids, token_ids and logprobs"
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
