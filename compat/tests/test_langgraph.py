"""Rollouts of LangGraph agents are recorded with token ids."""

from __future__ import annotations

import pytest

import art
import art_core
from art.langgraph import init_chat_model, wrap_rollout
from art_core.testing.echo import EchoBackend


@pytest.fixture
async def model(tmp_path):
    made = art_core.TrainableModel(
        name="one", project="demo", base_model="echo", base_path=tmp_path, sinks=[]
    )
    await made.register(EchoBackend())
    yield made
    await made.close()
    await made.backend.close()


def test_a_chat_model_outside_of_a_wrapped_rollout_is_an_error():
    with pytest.raises(art_core.ConfigError, match=r"wrap_rollout\(model, rollout\)"):
        init_chat_model("gpt-4.1")


async def test_the_calls_of_a_wrapped_rollout_fill_its_trajectory(model):
    openai = pytest.importorskip("openai")

    async def rollout(question: str) -> art.Trajectory:
        from art.langgraph import _endpoint

        endpoint = _endpoint.get()
        assert endpoint
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key
        ) as client:
            await client.chat.completions.create(
                model=endpoint.model_name, messages=[{"role": "user", "content": question}]
            )
        return art.Trajectory(reward=1.0)

    trajectory = await wrap_rollout(model, rollout)("yes")
    assert (trajectory.reward, [m["content"] for m in trajectory.messages()]) == (
        1.0,
        ["yes", "yes"],
    )
    (group,) = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([trajectory, art.Trajectory()])], pbar_desc=None
    )
    result = await model.train([group])
    assert result.metrics["data/step_trainer_tokens"] > 0


async def test_a_langchain_model_of_a_rollout_is_recorded_with_its_arguments(model):
    pytest.importorskip("langchain_openai", reason="needs pip install 'art-compat[langgraph]'")

    async def rollout() -> art.Trajectory:
        chat = init_chat_model("gpt-4.1", model_provider="openai", max_tokens=7, temperature=0.5)
        assert (chat.model_name, chat.max_tokens, chat.temperature) == ("one", 7, 0.5)
        assert init_chat_model("one@0").model_name == "one@0"
        await chat.ainvoke("yes")
        await chat.root_async_client.close()
        return art.Trajectory(reward=1.0)

    trajectory = await wrap_rollout(model, rollout)()
    assert [m["content"] for m in trajectory.messages()] == ["yes", "yes"]


async def test_without_langchain_the_error_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "langchain_openai", None)

    async def rollout() -> art.Trajectory:
        init_chat_model()
        return art.Trajectory()

    with pytest.raises(art_core.ConfigError, match=r"art-compat\[langgraph\]"):
        await wrap_rollout(model, rollout)()
