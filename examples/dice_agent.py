"""An agent that decides over several turns: GRPO on whole games of dice, some minutes on a laptop.

    python examples/dice_agent.py                    # 16 steps on this machine
    python examples/dice_agent.py --steps 30 --name dice-002
    python examples/dice_agent.py --sampler --name dice-003   # on the games that teach most

In each turn the model decides whether it rolls again. A roll adds to its points, a one or a two
loses all of them; the points at the end are its reward. The prompt has no advice when to stop.
Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random

import art_core as art
from art_core.cli.main import main as art_command

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RULES = "Answer with exactly one word: yes or no. You have 0 points. Do you roll the dice?"
MOST_ROLLS = 4
GAMES, ATTEMPTS, POOL = 12, 8, range(96)


async def rollout(model: art.TrainableModel, game: int) -> art.Trajectory:
    """Play a game to its end; every attempt at the same game gets the same dice."""
    client, dice = model.openai_client(), random.Random(game)
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": RULES}])
    points, rolls, said = 0, 0, "yes"
    while said == "yes" and rolls < MOST_ROLLS:
        completion = await client.chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=4
        )
        choice = completion.choices[0]
        trajectory.messages_and_choices.append(choice)
        said = (choice.message.content or "").strip().lower()
        if said == "yes":
            rolled, rolls = dice.randint(1, 6), rolls + 1
            points += rolled
            if rolled <= 2:
                said, points = "lost", 0
            told = f"You rolled {rolled} and have {points} points. Do you roll again?"
            trajectory.messages_and_choices.append({"role": "user", "content": told})
    fair = said in ("yes", "no", "lost")
    trajectory.reward = points / 10 if fair else 0.0
    trajectory.metrics |= {"rolls": rolls, "invalid": not fair}
    return trajectory


async def main(place: art.Backend, steps: int, name: str, *, sampled: bool) -> None:
    """Train for `steps` steps from wherever the run stands, with new dice in each, or on games
    of a pool that are `sampled` by what they teach.
    """
    async with art.TrainableModel(name=name, project="dice", base_model=MODEL) as model:
        await model.register(place)
        sampler = art.ScenarioSampler(
            scenarios=POOL, run_dir=model.run_dir, groups=GAMES, attempts=ATTEMPTS
        )
        for step in range(await model.get_step(), steps):
            if sampled:
                groups = await sampler.gather(step, lambda game: rollout(model, game))
            else:
                groups = await art.gather_trajectory_groups(
                    art.TrajectoryGroup(rollout(model, game) for _ in range(ATTEMPTS))
                    for game in range(step * GAMES, (step + 1) * GAMES)
                )
            await model.train(groups, learning_rate=2e-4, mask_truncated=False)
        await place.close()
    art_command(["plot", str(model.run_dir), "reward/mean"])
    art_command(["plot", str(model.run_dir), "reward/rolls"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "16")))
    parser.add_argument("--name", default="dice-001", help="the run's name; a known one resumes")
    parser.add_argument("--sampler", action="store_true", help="sample games by what they teach")
    args = parser.parse_args()
    try:
        asyncio.run(main(art.backend(args.backend), args.steps, args.name, sampled=args.sampler))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
