"""An agent of the OpenAI Agents SDK with a tool, which hands the result to another agent."""

from __future__ import annotations

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    handoff,
)
from agents.extensions.handoff_filters import remove_all_tools
from openai import AsyncOpenAI

import art_core as art


@function_tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


async def rollout(model: art.TrainableModel, a: int, b: int) -> art.Trajectory:
    """Play one attempt."""
    trajectory = art.Trajectory()
    settings = ModelSettings(temperature=1.0, max_tokens=200)
    with model.recording(trajectory) as e:
        async with AsyncOpenAI(base_url=e.base_url, api_key=e.api_key) as client:
            chosen = OpenAIResponsesModel(model=e.model_name, openai_client=client)
            writer = Agent(
                name="writer", instructions="Write it.", model=chosen, model_settings=settings
            )
            worker = Agent(
                name="worker", instructions="Add.", model=chosen, model_settings=settings,
                tools=[add], handoffs=[handoff(writer, input_filter=remove_all_tools)],
            )  # fmt: skip
            untraced = RunConfig(tracing_disabled=True)
            result = await Runner.run(worker, f"{a} + {b}?", run_config=untraced)
    trajectory.reward = float(str(a + b) in result.final_output)
    return trajectory
