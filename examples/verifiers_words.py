"""An environment of verifiers, trained: opposites of words, with its own dataset and rubric.

    art serve --backend local -o gpu_cost_per_hour_usd=0.10     # where torch is installed
    export ART_BASE_URL=http://127.0.0.1:8080/v1 ART_API_KEY=...  # in an environment of verifiers
    python examples/verifiers_words.py
    python examples/verifiers_words.py --environment wordle --max-tokens 512 --name wordle-001

verifiers needs other packages than `make` installs: it has an environment of its own, and the model
is at an `art serve`. Where both are installed, `--backend local` does. Typing it again resumes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from typing import Any

import verifiers as vf
from datasets import Dataset

import art_core as art
from art_core.cli.main import main as art_command
from art_verifiers import verifiers_rollout, verifiers_scenarios

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OPPOSITES = """hot cold, big small, up down, day night, black white, left right, new old, rich poor,
wet dry, hard soft, fast slow, high low, good bad, true false, long short, happy sad"""
SHOWN = (("strong", "weak"),)
QUESTIONS, ATTEMPTS = 6, 8


def one_word(completion: list[dict[str, Any]], **_: Any) -> float:
    """Return whether the answer is one word of lower-case letters."""
    text = completion[-1]["content"]
    return float(text.isalpha() and text.islower())


def right(completion: list[dict[str, Any]], answer: str, **_: Any) -> float:
    """Return whether the answer is the opposite, and nothing else."""
    return float(completion[-1]["content"] == answer)


def load_environment() -> vf.Environment:
    """Return the environment, as a package for verifiers does by this name."""
    pairs = [pair.split() for pair in OPPOSITES.split(",")]
    rows = [
        {"question": f"The opposite of {word}?", "answer": opposite}
        for pair in pairs
        for word, opposite in (pair, pair[::-1])
    ]
    shown = [
        {"role": role, "content": text}
        for word, opposite in SHOWN
        for role, text in (("user", f"The opposite of {word}?"), ("assistant", opposite))
    ]
    rubric = vf.Rubric(funcs=[one_word, right], weights=[0.3, 0.7])
    return vf.SingleTurnEnv(dataset=Dataset.from_list(rows), few_shot=shown, rubric=rubric)


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands."""
    world = args.environment or load_environment()
    scenarios = verifiers_scenarios(world)
    rollout = verifiers_rollout(world, options={"max_tokens": args.max_tokens})
    async with art.TrainableModel(
        name=args.name, project="verifiers-words", base_model=args.base_model
    ) as model:
        await model.register(place)
        for step in range(await model.get_step(), args.steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(
                    (rollout(model, scenario) for _ in range(ATTEMPTS)),
                    metadata={"scenario_id": scenario["id"]},
                )
                for scenario in random.Random(step).sample(scenarios, QUESTIONS)
            )
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        await place.close()
    curves = [str(model.run_dir), "reward/mean"]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "serverless"))
    parser.add_argument("--base-model", default=MODEL, help="what it starts from")
    parser.add_argument("--environment", metavar="NAME", help="an installed package")
    parser.add_argument("--max-tokens", type=int, default=6, help="of an answer")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "12")))
    parser.add_argument("--name", default="words-001", help="the run's name; a known one resumes")
    parser.add_argument("--figure", help="a file for the curves")
    args = parser.parse_args()
    try:
        asyncio.run(main(args, art.backend(args.backend)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
