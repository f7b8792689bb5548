"""Temporal clue: who was the thief, where and when? Puzzles to deduce, minutes on a laptop.

    python examples/temporal_clue.py                 # three people, rooms and hours
    python examples/temporal_clue.py --size 4        # four, indirect clues, a model for a GPU

At each hour of an evening, each room has one person. A solver takes true clues away, in random
order, as long as one answer fits. Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from collections.abc import Iterator
from itertools import pairwise, permutations, product
from typing import NamedTuple

import art_core as art
from art_core import rewards
from art_core.cli.main import main as art_command

SMALL, LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
BASE_MODELS = {3: SMALL, 4: LARGE}
PEOPLE = ("Ana", "Ben", "Eva", "Max")
ROOMS = ("kitchen", "garden", "attic", "library")
HOURS = ("seven", "eight", "nine", "ten")
RULES = "Solve the puzzle: who, where, when? Answer with three words only."
EASY = 3  # the largest size with direct clues only
PUZZLES, ATTEMPTS, WEIGHTS = 6, 8, dict.fromkeys(("who", "where", "when"), 1 / 3)
Values = tuple[str, ...]
World = dict[str, Values]
"""The `hour` and `room` of the theft, and at each hour the room of each person."""


class Clue(NamedTuple):
    """A sentence about places in parts of a world, and the values allowed there."""

    text: str
    about: dict[str, int]
    allowed: set[Values]

    def is_true(self, world: World) -> bool:
        """Return whether it is true in a world that has these parts."""
        return tuple(world[part][place] for part, place in self.about.items()) in self.allowed


def clues_of(size: int) -> Iterator[Clue]:
    """Yield clues, true or not; those of larger sizes are less direct."""
    rooms, hours, hard = ROOMS[:size], HOURS[:size], size > EASY
    for no in ("", "not "):
        for room in rooms:
            here: set[Values] = {(each,) for each in rooms if (each == room) != bool(no)}
            yield Clue(f"The theft was {no}in the {room}.", {"room": 0}, here)
            for i, hour in product(range(size), hours) if hard or not no else ():
                yield Clue(f"{PEOPLE[i]} was {no}in the {room} at {hour}.", {hour: i}, here)
        for hour in hours:
            now: set[Values] = {(each,) for each in hours if (each == hour) != bool(no)}
            yield Clue(f"The theft was {no}at {hour}.", {"hour": 0}, now)
    for (first, then), i in product(pairwise(hours), range(size)) if hard else ():
        text = f"{PEOPLE[i]} was in the same room at {first} and at {then}."
        yield Clue(text, {first: i, then: i}, {(room, room) for room in rooms})


def fit(clues: list[Clue], parts: dict[str, list[Values]], world: World) -> bool:
    """Return whether the clues are true in a world, choosing one part of it after the other."""
    if len(world) == len(parts):
        return True
    part = list(parts)[len(world)]
    now = [clue for clue in clues if part in clue.about and clue.about.keys() <= {part, *world}]
    choices = ({**world, part: choice} for choice in parts[part])
    return any(all(c.is_true(w) for c in now) and fit(clues, parts, w) for w in choices)


def answers(clues: list[Clue], size: int) -> list[tuple[str, str, str]]:
    """Return all answers that fit the clues: who, where and when."""
    rooms, hours, found = ROOMS[:size], HOURS[:size], []
    everywhere = list(permutations(rooms))
    for i, room, hour in product(range(size), rooms, hours):
        parts: dict[str, list[Values]] = {"hour": [(hour,)], "room": [(room,)]}
        parts[hour] = [each for each in everywhere if each[i] == room]
        if fit(clues, parts | {each: everywhere for each in hours if each != hour}, {}):
            found.append((PEOPLE[i], room, hour))
    return found


def puzzle(seed: int, size: int) -> tuple[str, tuple[str, str, str]]:
    """Return the clues of a new evening, and their only answer."""
    dice, rooms, hours = random.Random(f"{seed}, {size}"), ROOMS[:size], HOURS[:size]
    world: World = {hour: tuple(dice.sample(rooms, size)) for hour in hours}
    world |= {"room": (dice.choice(rooms),), "hour": (dice.choice(hours),)}
    true = [clue for clue in clues_of(size) if clue.is_true(world)]
    dice.shuffle(true)
    needed = list(true)
    for clue in true:
        fewer = [each for each in needed if each is not clue]
        needed = fewer if len(answers(fewer, size)) == 1 else needed
    return " ".join(clue.text for clue in needed), answers(needed, size)[0]


async def rollout(model: art.TrainableModel, seed: int, size: int = 3) -> art.Trajectory:
    """Ask for the answer to a puzzle, after a solved one; each right word is a third."""
    (example, solved), (clues, answer) = puzzle(-1, size), puzzle(seed, size)
    attempt = art.Trajectory(messages_and_choices=[{"role": "system", "content": RULES}])
    for turn, text in enumerate((example, ", ".join(solved), clues)):
        message = {"role": ("user", "assistant")[turn % 2], "content": text}
        attempt.messages_and_choices.append(message)
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=attempt.messages(), max_tokens=12
    )
    attempt.messages_and_choices.append(completion.choices[0])
    words = (completion.choices[0].message.content or "").split(", ")
    told = words if len(words) == len(answer) else ("", "", "")
    right = map(rewards.normalised_match, told, answer)
    await art.reward(attempt, dict(zip(WEIGHTS, right, strict=True)), weights=WEIGHTS)
    return attempt


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands, on new puzzles in each step."""
    name, base = f"size-{args.size}-001", args.base_model or BASE_MODELS[args.size]
    async with art.TrainableModel(name=name, project="temporal-clue", base_model=base) as model:
        await model.register(place)
        for step in range(await model.get_step(), args.steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(model, seed, args.size) for _ in range(ATTEMPTS))
                for seed in range(step * PUZZLES, (step + 1) * PUZZLES)
            )
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        await place.close()
    curves = [str(model.run_dir), *(f"reward/{part}" for part in ("mean", *WEIGHTS))]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, choices=BASE_MODELS, default=3)
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", help="instead of the one for this size")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "24")))
    parser.add_argument("--figure", help="a file for the curves")
    args = parser.parse_args()
    try:
        asyncio.run(main(args, art.backend(args.backend)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
