"""An agent in TypeScript, trained through the gateway: it looks up the weather of a town.

    npm install --prefix examples/gateway
    python examples/typescript_agent.py                # some minutes on this machine
    python examples/typescript_agent.py --agent "node my_agent.mjs" --name weather-002

The agent is a program of its own, examples/gateway/weather.mts. Each step starts it with the
gateway's address and key, GATEWAY_URL and GATEWAY_KEY, and with what it is to play: TOWNS and
ATTEMPTS. Typing it again resumes the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import art_core as art
from art_core.cli.main import main as art_command

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = Path(__file__).parent / "gateway"
AGENT = shlex.join([str(FOLDER / "node_modules" / ".bin" / "tsx"), str(FOLDER / "weather.mts")])
TOWNS = "Rome Paris Oslo Cairo Delhi Bonn Bern Perth Quito Tokyo Berlin Dublin"
ASKED, ATTEMPTS = 4, 8


async def play(gateway: Any, towns: Sequence[str], agent: str) -> list[art.TrajectoryGroup]:
    """Let the agent play attempts at each town; return a group for each."""
    variables = {
        "GATEWAY_URL": gateway.url,
        "GATEWAY_KEY": gateway.api_key,
        "TOWNS": " ".join(towns),
        "ATTEMPTS": str(ATTEMPTS),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(agent), env=os.environ | variables
        )
    except FileNotFoundError as error:
        raise art.ConfigError(
            f"the agent can't be started: {error.filename} is missing",
            shlex.join(["npm", "install", "--prefix", str(FOLDER)]),
        ) from error
    if status := await process.wait():
        raise art.InfrastructureError(f"the agent ended with the status {status}: {agent}")
    return [await gateway.group(town, size=ATTEMPTS) for town in towns]


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands."""
    async with art.TrainableModel(
        name=args.name, project="typescript-agent", base_model=args.base_model
    ) as model:
        await model.register(place)
        async with model.gateway() as gateway:
            for step in range(await model.get_step(), args.steps):
                towns = random.Random(step).sample(TOWNS.split(), ASKED)
                groups = await play(gateway, towns, args.agent)
                await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        await place.close()
    curves = [str(model.run_dir), *(f"reward/{part}" for part in ("mean", "named", "right"))]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default=MODEL, help="what it starts from")
    parser.add_argument("--agent", default=AGENT, help="the command of the agent")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "12")))
    parser.add_argument("--name", default="weather-001", help="the run's name; a known one resumes")
    parser.add_argument("--usd-per-hour", type=float, default=0.10, help="what this machine costs")
    parser.add_argument("--figure", help="a file for the curves")
    args = parser.parse_args()
    try:
        price = {"gpu_cost_per_hour_usd": args.usd_per_hour} if args.usd_per_hour else {}
        asyncio.run(main(args, art.backend(args.backend, **price)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
