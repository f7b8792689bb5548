"""Runs for the page's tests, its pictures and its benchmark, logged by the real model."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import art_core as art

WORDS = ("The", "answer", "is", "that", "the", "river", "flows", "to", "the", "sea", "at", "last")


def choice(text: str, seed: int, *, finish: str = "stop", calls: Any = None) -> dict[str, Any]:
    """Return a sampled answer with its tokens, as an endpoint gives it."""
    draw = random.Random(seed)
    pieces = [word + " " for word in text.split(" ")]
    tokens = [
        {"token": piece, "logprob": -draw.expovariate(1.2), "bytes": None, "top_logprobs": []}
        for piece in pieces
    ]
    message = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    return {
        "finish_reason": finish,
        "index": 0,
        "message": message,
        "logprobs": {"content": tokens},
        "token_ids": [draw.randrange(50_000) for _ in pieces],
        "prompt_token_ids": list(range(12)),
        "policy_version": seed % 40,
    }


def attempt(step: int, scenario: int, place: int) -> art.Trajectory:
    """Return an attempt with a call of a tool; later steps are better."""
    draw = random.Random(step * 1000 + scenario * 10 + place)
    skill = 1 - math.exp(-step / 15)
    reward = max(0.0, min(1.0, skill + draw.gauss(0, 0.15)))
    call = {
        "id": "c1",
        "type": "function",
        "function": {
            "name": "search_inbox",
            "arguments": f'{{"keywords": ["invoice {scenario}"], "limit": 5}}',
        },
    }
    answer = " ".join(draw.choices(WORDS, k=20 + draw.randrange(30)))
    seed = step * 100 + place
    return art.Trajectory(
        messages_and_choices=[
            {
                "role": "system",
                "content": "Answer questions about an inbox. Search before you answer.",
            },
            {
                "role": "user",
                "content": f"Which invoice of March is not paid? (question {scenario})",
            },
            choice("I look for the invoices first.", seed, calls=[call]),
            {
                "role": "tool",
                "tool_call_id": "c1",
                "content": f"1. Invoice {scenario}-17, open\n2. Invoice {scenario}-18, paid",
            },
            choice(answer, seed + 1, finish="length" if draw.random() < 0.1 else "stop"),
        ],
        reward=reward,
        metrics={"correct": float(reward > 0.6), "sources": draw.randrange(4)},
        metadata={"difficulty": "hard" if scenario % 2 else "easy"},
        logs=[f"searched {scenario + 1} folders"],
    )


async def log_run(
    base: Path,
    name: str,
    *,
    steps: int = 40,
    project: str = "inbox",
    close: bool = True,
    start: int = 1,
    trajectories: bool = True,
    quality: float = 1.0,
) -> art.Model:
    """Log a run: rewards that rise, losses, costs, evaluations, failures now and then."""
    model = art.Model(name=name, project=project, sinks=[], base_path=base)
    draw = random.Random(name)
    for step in range(start, start + steps):
        builder = model.metrics_builder("train")
        builder.add_cost("train/gpu", 0.012 + 0.002 * draw.random())
        builder.add_cost("train/judge", 0.004 * draw.random())
        builder.add_data(step_actor_tokens=4000 + 800 * draw.random())
        metrics = {
            "loss/train": math.exp(-step / 12) + 0.1 * draw.random(),
            "loss/entropy": 1.4 * math.exp(-step / 40) + 0.05 * draw.random(),
            "loss/grad_norm": 0.4 + 0.3 * draw.random(),
        }
        groups = [
            art.TrajectoryGroup(
                [attempt(round(step * quality), scenario, place) for place in range(6)],
                exceptions=[TimeoutError("the mail server did not answer in 30 s")]
                if (step + scenario) % 5 == 0
                else [],
                metadata={"scenario_id": f"question-{scenario}"},
            )
            for scenario in range(4)
        ]
        await model.log(
            groups if trajectories else groups[:1], split="train", step=step, metrics=metrics
        )
        if step % 10 == 0:

            async def rollout(_: Any, scenario: Any, step: int = step) -> art.Trajectory:
                return attempt(round(step * quality), scenario["n"], 7)

            scenarios = [{"id": f"held-out-{n}", "n": n} for n in range(12)]
            await art.evaluate(model, scenarios, rollout, step=step, repeats=2, progress=None)
    if close:
        await model.close()
    return model
