"""Tic-tac-toe: lessons, GRPO against a random player, then against the model's own older step.

    python examples/tic_tac_toe.py                  # some minutes on this machine
    python examples/tic_tac_toe.py --steps 80 --random-steps 40 --name tic-tac-toe-002

Step 1 teaches the form of an answer by games of two random players (--lessons). The backend serves
the older step beside the newest one, as `name@step`; every `EVERY` steps the opponent becomes the
model of that time. At the end the untrained model and the trained one play both opponents, in games
that were not trained on. Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from functools import partial
from typing import Any

import art_core as art
from art_core.cli.main import main as art_command

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RULES = "Play tic-tac-toe as X. Answer with exactly one number: that of a free cell."
ROWS = ("123", "456", "789", "147", "258", "369", "159", "357")
REWARDS = {"won": 1.0, "draw": 0.6, "lost": 0.4}
GAMES, EVERY, NEW = 48, 3, range(10**6, 10**6 + 24)


def free(board: list[str]) -> list[str]:
    """Return the numbers of the free cells."""
    return [cell for cell in board if cell.isdigit()]


def has_row(player: str, board: list[str]) -> bool:
    """Return whether a player has three cells in a row."""
    return any(all(board[int(cell) - 1] == player for cell in row) for row in ROWS)


def add_board(talk: list[Any], player: str, board: list[str]) -> None:
    """Show a player the board: its own marks are X, and free cells are numbers."""
    lines = "\n".join(" ".join(board[at : at + 3]) for at in (0, 3, 6))
    seen = lines if player == "X" else lines.translate(str.maketrans("XO", "OX"))
    talk.append({"role": "user", "content": seen if talk else f"{RULES}\n{seen}"})


async def ask(model: art.TrainableModel, messages: list[Any], step: int | None = None) -> Any:
    """Return the choice of a step, by default the newest; one token is one move."""
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(step), messages=messages, max_tokens=1
    )
    return completion.choices[0]


async def rollout(
    model: art.TrainableModel | None, game: int, opponent: int | None = None
) -> art.Trajectory:
    """Play a game as X against the step `opponent` of the model, without one against random moves.
    Without a model, X moves at random too: a lesson.

    An answer other than a free cell ends the game, with 0.1 for each move before it. The older
    step's first move is random, so that games differ, and so is one in place of such an answer.
    """
    dice, board, player = random.Random(game), list("123456789"), "XO"[game % 2]
    mine = art.Trajectory(messages_and_choices=[])
    theirs: list[Any] = []
    result = "draw"
    while result == "draw" and free(board):
        cell = dice.choice(free(board))
        if player == "X":
            add_board(mine.messages_and_choices, player, board)
            move: Any = {"role": "assistant", "content": cell}
            mine.messages_and_choices.append(await ask(model, mine.messages()) if model else move)
            cell = (mine.messages()[-1]["content"] or "").strip()
        elif model and opponent is not None and "O" in board:
            add_board(theirs, player, board)
            answer = (await ask(model, theirs, opponent)).message.content or ""
            theirs.append({"role": "assistant", "content": answer})
            cell = answer.strip() if answer.strip() in free(board) else cell
        if cell not in free(board):
            result = "illegal"
            break
        board[int(cell) - 1] = player
        if has_row(player, board):
            result = "won" if player == "X" else "lost"
        player = "O" if player == "X" else "X"
    mine.reward = REWARDS.get(result, 0.1 * board.count("X"))
    mine.metrics |= {name: result == name for name in (*REWARDS, "illegal")}
    return mine


async def compare(model: art.TrainableModel, first: int, last: int) -> None:
    """Let two steps play both opponents, and print what their games were worth."""
    for split, opponent in (("random", None), ("older", first)):
        for step in (0, last):
            (found,) = await art.evaluate(
                model, NEW, partial(rollout, opponent=opponent), step=step, split=split
            )
            won = found.row.metrics[f"{split}/won"]
            reward = found.reward
            print(f"step {step} against {split}: reward {reward.mean:.2f}, won {won:.0%}")


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands, on new games in each step."""
    named = {"name": args.name, "project": "tic-tac-toe", "base_model": args.base_model}
    async with art.TrainableModel(**named, keep_checkpoints=art.keep_all()) as model:
        await model.register(place)
        if args.lessons:
            lessons = [await rollout(None, game) for game in range(-args.lessons, 0)]
            few = {"batch_size": 8, "batches_per_step": args.lessons}  # all batches in one step
            await model.train_sft(lessons, learning_rate=3e-4, **few)
        for step in range(await model.get_step(), args.steps):
            ahead = step - args.random_steps
            opponent = None if ahead < 0 else step - ahead % EVERY
            games = range(step * GAMES, (step + 1) * GAMES)
            # two groups, by who begins; were all dice of a group equal, so were the rewards of a
            # model that is sure of its moves, and nothing would be learned
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(model, game, opponent) for game in games[first::2])
                for first in (0, 1)
            )
            await model.train(groups, learning_rate=2e-4, mask_truncated=False)
        last = await model.get_step()
        await compare(model, min(args.random_steps, last), last)
        await place.close()
    curves = [str(model.run_dir), "reward/mean", "reward/won"]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default=MODEL, help="what it starts from")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "18")))
    parser.add_argument("--random-steps", type=int, default=13, help="before self-play begins")
    parser.add_argument("--lessons", type=int, default=48, help="games of random players; 0: none")
    parser.add_argument("--usd-per-hour", type=float, default=0.10, help="what this machine costs")
    parser.add_argument("--name", default="tic-tac-toe-001", help="a known name resumes")
    parser.add_argument("--figure", help="a file for the curves")
    args = parser.parse_args()
    try:
        price = {"gpu_cost_per_hour_usd": args.usd_per_hour} if args.usd_per_hour else {}
        asyncio.run(main(args, art.backend(args.backend, **price)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
