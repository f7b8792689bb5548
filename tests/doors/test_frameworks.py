"""Agents of frameworks with real tools and a real model: a tiny one learns from one recorded
demonstration to use the tool, then plays by itself, and a step trains on what it played.
"""

import json
import runpy
from pathlib import Path

import pytest

import art_core as art
from art_core.data.trajectory import tokens_of
from art_core.testing.echo import EchoBackend

pytest.importorskip("torch")

from art_local.backend import LocalBackend
from art_local.testing.tiny import save_tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "frameworks"
# LangChain keeps one client for an address, which belongs to the first event loop.
pytestmark = pytest.mark.asyncio(loop_scope="session")


def called(name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"tool_calls": [{"id": f"call_{name}", "type": "function", "function": function}]}


ADDS = called("add", a=1, b=2)


AGENTS = {
    "langgraph_agent": ([ADDS, "3", "It is 3."], [2, 1]),
    "agents_sdk": ([ADDS, called("transfer_to_writer"), "It is 3."], [2, 1]),
    "pydantic_ai_agent": ([ADDS, called("write", result="3"), "3!", "It is 3."], [3, 1]),
    "smolagents_agent": (
        ["<code>\nx = add(1, 2)\nprint(x)\n</code>", "<code>\nfinal_answer(x)\n</code>"], [2],
    ),
}  # fmt: skip
"""The answers in the demonstration, and how many of them each conversation has in a rollout."""


def turns_of(trajectory):
    return [
        [tokens_of(item) for item in history.messages_and_choices if not isinstance(item, dict)]
        for history in trajectory.histories()
    ]


async def demonstration(rollout, said, place):
    backend = EchoBackend(reply=lambda messages, step: next(answers))
    answers = iter(said)
    async with art.TrainableModel(
        name="shown", project="p", base_model="echo", base_path=place, sinks=[]
    ) as model:
        await model.register(backend)
        shown = await rollout(model, 1, 2)
    await backend.close()
    return shown


@pytest.mark.parametrize("name", AGENTS)
async def test_a_small_agent_uses_its_tool_and_is_trained(name, tmp_path):
    rollout = runpy.run_path(str(EXAMPLES / f"{name}.py"))["rollout"]
    said, conversations = AGENTS[name]
    shown = await demonstration(rollout, said, tmp_path)
    assert shown.reward == 1
    base = save_tiny_model(tmp_path / "tiny", context_length=4096)
    backend = LocalBackend(device="cpu", dtype="float32", progress=False, full_finetune=True)
    async with art.TrainableModel(
        name="agent", project="p", base_model=str(base), base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        # As messages: the tokens of an echo are not those of the tiny model.
        lessons = [art.Trajectory(messages_and_choices=h.messages()) for h in shown.histories()]
        few = {"batch_size": 1, "batches_per_step": 40, "checkpoint_every": 100}
        await model.train_sft(lessons * 20, learning_rate=2e-3, epochs=10, **few)
        group = art.TrajectoryGroup(rollout(model, 1, 2) for _ in range(4))
        (group,) = await art.gather_trajectory_groups([group], pbar_desc=None)
        assert not group.failures
        # The model samples at temperature 1: an attempt may fail, all of them very rarely.
        solved = [attempt for attempt in group.trajectories if attempt.reward == 1]
        assert solved
        for attempt in solved:
            assert [len(turns) for turns in turns_of(attempt)] == conversations
        for rank, attempt in enumerate(group.trajectories):
            attempt.reward = float(rank)
        sampled = sum(
            len(turn.completion_ids)
            for attempt in group.trajectories
            for turns in turns_of(attempt)
            for turn in turns
        )
        result = await model.train([group], learning_rate=1e-4)
        assert result.metrics["data/step_num_gradient_steps"] == 1
        assert result.metrics["data/step_trainer_tokens"] == sampled
    await backend.close()
