"""The client of `test_server.py`, run in the environment of the SDK that fits the server:

    python server_client.py BASE_URL BASE_MODEL DIRECTORY

The last line is JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path

import art_core as art

QUESTION = [{"role": "user", "content": "Answer with one word, yes or no. Is fire cold?"}]
PRICES = {"prompt_per_million": 1.0, "completion_per_million": 3.0, "train_per_million": 5.0}
EXACT = {"loss_fn": "importance_sampling", "truncated_importance_sampling": math.inf}


async def opened(base_url, base_model, directory):
    model = art.TrainableModel(
        name="agent", project="server", base_model=base_model, base_path=directory, sinks=[]
    )
    model.metrics_builder().register_model_pricing(base_model, **PRICES)
    backend = art.backend(
        "tinker", base_url=base_url, api_key="tml-any", lora_rank=8, connect_timeout_s=120.0
    )
    await model.register(backend)
    return model, backend


async def asked(model, step=None):
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(step), messages=QUESTION, max_tokens=6
    )
    return completion.choices[0]


async def attempt(model):
    choice = await asked(model)
    said = (choice.message.content or "").lower()
    reward = 1.0 if "no" in said else 0.1 * len(set(said)) / 30
    return art.Trajectory(messages_and_choices=[*QUESTION, choice], reward=reward)


def tokens_of(groups):
    choices = [trajectory.messages_and_choices[1] for group in groups for trajectory in group]
    prompt = sum(len(choice.prompt_token_ids) for choice in choices)
    return prompt, sum(len(choice.token_ids) for choice in choices), len(choices)


async def told(base_url, base_model, directory):
    """Three losses on one group, a restart, and one more step from the saved state."""
    model, backend = await opened(base_url, base_model, directory)
    attempts = art.TrajectoryGroup(attempt(model) for _ in range(8))
    groups = await art.gather_trajectory_groups([attempts], pbar_desc=None, max_exceptions=0)
    rows = []
    for options in (EXACT, {"loss_fn": "cispo"}, {"loss_fn": "ppo"}):
        await model.train(groups, learning_rate=1e-3, mask_truncated=False, **options)
        rows.append(model.run.history.last.metrics)
    await model.close()
    await backend.close()
    model, backend = await opened(base_url, base_model, directory)
    resumed = await backend.step(model)
    versions = [(await asked(model, step)).policy_version for step in (None, 0, 1)]
    await model.train(groups, learning_rate=1e-3, mask_truncated=False, **EXACT)
    rows.append(model.run.history.last.metrics)
    deleted = await backend.delete_checkpoints(model, {3})
    await model.close()
    await backend.close()
    return {
        "tokens": tokens_of(groups),
        "rows": rows,
        "resumed": resumed,
        "versions": versions,
        "deleted": deleted,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(told(sys.argv[1], sys.argv[2], Path(sys.argv[3])))))
