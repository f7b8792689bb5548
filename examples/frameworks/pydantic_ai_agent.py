"""An agent of Pydantic AI with two tools, one of which asks an agent of its own."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import art_core as art


async def rollout(model: art.TrainableModel, a: int, b: int) -> art.Trajectory:
    """Play one attempt."""
    trajectory = art.Trajectory()
    with model.recording(trajectory) as e:
        provider = OpenAIProvider(base_url=e.base_url, api_key=e.api_key)
        chosen = OpenAIChatModel(e.model_name, provider=provider)
        settings = {"temperature": 1.0, "max_tokens": 200}
        writer = Agent(chosen, system_prompt="Write it.", model_settings=settings)
        worker = Agent(chosen, system_prompt="Add.", model_settings=settings)

        @worker.tool_plain
        def add(a: int, b: int) -> str:
            """Add two numbers."""
            return str(a + b)

        @worker.tool_plain
        async def write(result: str) -> str:
            """Write a result as a sentence."""
            return (await writer.run(result)).output

        answer = (await worker.run(f"{a} + {b}?")).output
    trajectory.reward = float(str(a + b) in answer)
    return trajectory
