"""An agent of smolagents that writes code, with a tool that its code calls."""

from __future__ import annotations

import asyncio

from smolagents import CodeAgent, OpenAIModel, tool

import art_core as art


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: One number.
        b: Another number.

    """
    return a + b


PROMPT = "Write code between <code> and </code>. Call add(a, b), then final_answer(...)."


async def rollout(model: art.TrainableModel, a: int, b: int) -> art.Trajectory:
    """Play one attempt."""
    trajectory = art.Trajectory()
    with model.recording(trajectory) as e:
        chosen = OpenAIModel(
            e.model_name, api_base=e.base_url, api_key=e.api_key, temperature=1.0, max_tokens=200
        )
        agent = CodeAgent(tools=[add], model=chosen, max_steps=3, verbosity_level=0)
        agent.prompt_templates["system_prompt"] = PROMPT  # theirs has 10,000 characters
        answer = await asyncio.to_thread(agent.run, f"{a} + {b}?")
    trajectory.reward = float(answer == a + b)
    return trajectory
