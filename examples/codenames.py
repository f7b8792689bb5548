"""Codenames: self-play of two roles, spymaster and operative, by one model; minutes on a laptop.

    python examples/codenames.py                     # 6 words, 2 of them the team's
    python examples/codenames.py --size 12           # 12 words, 3 of them; a model for a GPU

The spymaster sees which words are the team's and gives a clue of one word; the operative sees the
clue and the board, and guesses. Answers of both are trained. Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random

import attrs

import art_core as art
from art_core.cli.main import main as art_command

SMALL, LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
BASE_MODELS, OWN = {6: SMALL, 12: LARGE}, {6: 2, 12: 3}
TOPICS = """dog cow horse sheep lion tiger wolf bear goat mouse
bread cheese apple rice soup cake egg pear bean honey
hammer saw drill nail screw axe spade rake rope ladder
shirt shoe hat coat sock dress glove scarf belt boot
piano drum flute violin guitar trumpet harp organ cello bell
rain snow wind storm cloud fog hail frost sun thunder
bus train car ship plane boat truck taxi tram bike
nose ear hand foot knee eye arm leg neck tooth"""
SPYMASTER = "Give one clue: one word that fits all of your words and none of the others."
OPERATIVE = "Name the words on the board that the clue means, as many as asked, and nothing else."
BOARDS, ATTEMPTS = 4, 12


@attrs.frozen
class Board:
    """The words of a turn in their order, those of the team, and the one that loses the turn."""

    words: list[str]
    own: list[str]
    assassin: str

    def for_spymaster(self) -> str:
        """Return what the spymaster sees."""
        others = ", ".join(word for word in self.words if word not in self.own)
        return f"your words: {', '.join(self.own)}\nothers: {others}"

    def for_operative(self, clue: str) -> str:
        """Return what the operative sees."""
        return f"board: {', '.join(self.words)}\nclue: {clue}, {len(self.own)} words"

    def allows(self, clue: str) -> bool:
        """Return whether a clue is one word, and neither in a word on the board nor around one."""
        near = [word for word in self.words if clue in word or word in clue]
        return clue.isalpha() and len(clue) > 2 and not near

    def found(self, guesses: list[str]) -> float:
        """Return the share of the team's words that is guessed before the first other word."""
        if self.assassin in guesses:
            return 0.0
        wrong = [place for place, word in enumerate(guesses) if word not in self.own]
        return min([len(guesses), *wrong]) / len(self.own)


EXAMPLE = Board(["lamp", "red", "king", "green", "coin", "lake"], ["red", "green"], "king")


def board_of(seed: int, size: int) -> Board:
    """Return a board. The team's words are of one topic, and the others of other topics."""
    dice = random.Random(f"{seed}, {size}")
    topic, *rest = dice.sample([line.split() for line in TOPICS.splitlines()], 8)
    own = dice.sample(topic, OWN[size])
    others = dice.sample([word for words in rest for word in words], size - len(own))
    return Board(dice.sample([*own, *others], size), own, others[0])


async def play(model: art.TrainableModel, rules: str, *shown: str) -> tuple[art.Trajectory, str]:
    """Ask a role, after an example; return its attempt and its answer."""
    attempt = art.Trajectory(messages_and_choices=[{"role": "system", "content": rules}])
    for turn, text in enumerate(shown):
        role = ("user", "assistant")[turn % 2]
        attempt.messages_and_choices.append({"role": role, "content": text})
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=attempt.messages(), max_tokens=12
    )
    attempt.messages_and_choices.append(completion.choices[0])
    return attempt, (completion.choices[0].message.content or "").strip().lower()


async def rollout(model: art.TrainableModel, seed: int, size: int = 6) -> dict[str, art.Trajectory]:
    """Play a turn. A clue that is allowed and guesses in the right form are worth 0.2, and the
    words that are found 0.8; after another clue nothing is guessed.
    """
    board = board_of(seed, size)
    example = (EXAMPLE.for_spymaster(), "colour")
    spymaster, clue = await play(model, SPYMASTER, *example, board.for_spymaster())
    spymaster.reward = spymaster.metrics["spymaster"] = 0.0
    if not board.allows(clue):
        return {"spymaster": spymaster}
    example = (EXAMPLE.for_operative("colour"), "red, green")
    operative, answer = await play(model, OPERATIVE, *example, board.for_operative(clue))
    guesses = answer.split(", ")
    in_form = len(guesses) == len({*guesses} & {*board.words}) == len(board.own)
    found = board.found(guesses) if in_form else 0.0
    for role, attempt, form in (("spymaster", spymaster, 1), ("operative", operative, in_form)):
        attempt.reward = attempt.metrics[role] = 0.2 * form + 0.8 * found
    return {"spymaster": spymaster, "operative": operative}


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands, on new boards in each step."""
    name, base = f"words-{args.size}-001", args.base_model or BASE_MODELS[args.size]
    async with art.TrainableModel(name=name, project="codenames", base_model=base) as model:
        await model.register(place)
        for step in range(await model.get_step(), args.steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(
                    (rollout(model, seed, args.size) for _ in range(ATTEMPTS)),
                    metadata={"scenario_id": seed},
                )
                for seed in range(step * BOARDS, (step + 1) * BOARDS)
            )
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        await place.close()
    curves = [str(model.run_dir), "reward/mean", "reward/spymaster", "reward/operative"]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, choices=BASE_MODELS, default=6, help="of a board")
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
