"""A format that the model never writes by itself: taught by SFT, then improved by GRPO.

    python examples/strict_moves.py                # both runs, in some minutes on a CPU
    python examples/strict_moves.py --steps 30 --figure strict_moves.png

A move in tic-tac-toe counts only as `<move>5</move>`. GRPO without lessons has no reward to learn
from, since the small model never answers so. Some conversations with random legal moves teach the
format; then GRPO finds the winning moves. Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
from typing import Any

import art_core as art
from art_core.cli.main import main as art_command

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RULES = (
    "You play tic-tac-toe as X and can win with one move. Free cells are numbers. "
    "Answer with the number of a cell, as <move>number</move> and nothing else."
)
ROWS = ("123", "456", "789", "147", "258", "369", "159", "357")
MOVE = re.compile(r"<move>([1-9])</move>")
LESSONS, BOARDS, ATTEMPTS = 96, 6, 8
"""Every step plays the same boards, so that its reward compares with that of the step before."""


def wins(board: list[str], cell: str) -> bool:
    """Return whether X on a cell completes a row."""
    return any(
        cell in row and all(board[int(other) - 1] == "X" for other in row if other != cell)
        for row in ROWS
    )


def winnable(seed: int) -> tuple[list[str], list[str]]:
    """Return a board on which X can win with one move, and the winning cells."""
    dice = random.Random(seed)
    while True:
        board = list("123456789")
        for place, cell in enumerate(dice.sample(board, dice.choice((4, 6)))):
            board[int(cell) - 1] = "XO"[place % 2]
        won = any(
            all(board[int(cell) - 1] == mark for cell in row) for row in ROWS for mark in "XO"
        )
        free = [cell for cell in board if cell.isdigit()]
        winning = [cell for cell in free if wins(board, cell)]
        if winning and not won:
            return board, winning


def question(board: list[str]) -> Any:
    """Return the message that shows a board."""
    lines = "\n".join(" ".join(board[at : at + 3]) for at in (0, 3, 6))
    return {"role": "user", "content": f"{RULES}\n{lines}"}


def lesson(seed: int) -> art.Trajectory:
    """Return a conversation with a random legal move, which need not be a good one."""
    board, _ = winnable(seed)
    cell = random.Random(seed).choice([cell for cell in board if cell.isdigit()])
    answer = {"role": "assistant", "content": f"<move>{cell}</move>"}
    return art.Trajectory(messages_and_choices=[question(board), answer])


async def rollout(model: art.TrainableModel, seed: int) -> art.Trajectory:
    """Ask for a move: 1 if it wins, 0.3 if it is legal, 0 without the format."""
    board, winning = winnable(seed)
    asked = question(board)
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[asked], max_tokens=16
    )
    choice = completion.choices[0]
    found = MOVE.fullmatch((choice.message.content or "").strip())
    cell = found[1] if found else ""
    reward = 1.0 if cell in winning else 0.3 * (cell in board)
    return art.Trajectory(
        messages_and_choices=[asked, choice],
        reward=reward,
        metrics={"format": found is not None, "legal": cell in board, "won": cell in winning},
    )


async def train(name: str, place: art.Backend, args: argparse.Namespace, *, warm_up: bool) -> str:
    """Train one run, with or without lessons before; return its directory."""
    async with art.TrainableModel(
        name=name, project="strict-moves", base_model=args.base_model
    ) as model:
        await model.register(place)
        begun = 0
        if warm_up:
            lessons = [lesson(10**6 + seed) for seed in range(args.lessons)]
            await model.train_sft(lessons, learning_rate=3e-4, batch_size=8)
            begun = -(-args.lessons // 8)
        for _ in range(await model.get_step() - begun, args.steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(model, seed) for _ in range(ATTEMPTS))
                for seed in range(BOARDS)
            )
            await model.train(groups, learning_rate=3e-4)
        await place.unregister(model)
    return str(model.run_dir)


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train both runs and draw their rewards."""
    runs = [
        await train(f"{args.name}-sft", place, args, warm_up=True),
        await train(f"{args.name}-grpo", place, args, warm_up=False),
    ]
    await place.close()
    figure = ["--out", args.figure] if args.figure else []
    art_command(["plot", *runs, "reward/mean", *figure])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default=MODEL, help="what it starts from")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "16")))
    parser.add_argument("--lessons", type=int, default=LESSONS)
    parser.add_argument("--name", default="strict-moves", help="a known name resumes")
    parser.add_argument("--figure", help="a file for the curves")
    args = parser.parse_args()
    try:
        asyncio.run(main(args, art.backend(args.backend)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
