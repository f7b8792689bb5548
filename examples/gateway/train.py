"""Train a model on attempts of agents in other processes: this program serves them a gateway.

python examples/gateway/train.py                     # prints two lines: set them where agents run
for i in 1 2 3 4; do sh examples/gateway/agent.sh & done
for i in 1 2 3 4; do node examples/gateway/agent.mjs & done
"""

from __future__ import annotations

import argparse
import asyncio

import art_core as art

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


async def train(model: art.TrainableModel, *, steps: int, size: int, port: int = 0) -> None:
    """Train steps, each on one group of attempts that agents have ended."""
    async with model.gateway(port=port, attempt_timeout_s=600) as gateway:
        print(f"export GATEWAY_URL={gateway.url}")
        print(f"export GATEWAY_KEY={gateway.api_key}", flush=True)
        for _ in range(steps):
            group = await gateway.group(size=size)
            result = await model.train([group], learning_rate=1e-5)
            print(f"step {result.step}: rewards {group.rewards}, {len(group.failures)} failures")


async def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=8, help="attempts of a group")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--backend", default="local")
    arguments = parser.parse_args()
    async with art.TrainableModel(name="gateway-001", project="demo", base_model=MODEL) as model:
        await model.register(arguments.backend)
        await train(model, steps=arguments.steps, size=arguments.size, port=arguments.port)


if __name__ == "__main__":
    asyncio.run(main())
