"""2048 as an agent: GRPO on whole games, one move in each turn, some minutes on a laptop.

    python examples/game_2048.py                    # a board of 2x2 cells, on this machine
    python examples/game_2048.py --size 3           # longer games
    ART_SIZE=4 python examples/game_2048.py         # the real board, with a model for a GPU

A game ends when no move shifts a tile, or at the third answer that shifts none. The reward is the
sum of the tiles at the end, over that of a good game. The prompt has no advice which move is good.
Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random

import art_core as art
from art_core.cli.main import main as art_command

SMALL, LARGE = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
BASE_MODELS = {2: SMALL, 3: SMALL, 4: LARGE}
GOOD = {2: 32, 3: 128, 4: 2048}
MOST_TURNS, MOST_WASTED = {2: 24, 3: 64, 4: 200}, 3
RULES = "Play 2048. Answer with exactly one word: left, right, up or down."
MOVES = ("left", "up", "right", "down")
GAMES, ATTEMPTS = 4, 8

Board = list[list[int]]


def merged(row: list[int]) -> list[int]:
    """Slide a row to the left; two equal tiles that meet become one."""
    tiles, done = [tile for tile in row if tile], []
    while tiles:
        tile = tiles.pop(0)
        done.append(tile + tiles.pop(0) if tiles[:1] == [tile] else tile)
    return done + [0] * (len(row) - len(done))


def turned(board: Board, times: int) -> Board:
    """Turn a board to the left by 90 degrees, some times."""
    for _ in range(times):
        board = [list(column) for column in zip(*board, strict=True)][::-1]
    return board


def moved(board: Board, move: str) -> Board:
    """Slide all tiles; another word than a move slides none."""
    if move not in MOVES:
        return board
    times = MOVES.index(move)
    return turned([merged(row) for row in turned(board, times)], 4 - times)


def with_tile(board: Board, dice: random.Random) -> Board:
    """Put a new tile on a free cell: a 2, or once in ten times a 4."""
    free = [(r, c) for r, row in enumerate(board) for c, tile in enumerate(row) if not tile]
    place, tile = dice.choice(free), 4 if dice.random() < 0.1 else 2
    cells = enumerate(board)
    return [[tile if (r, c) == place else old for c, old in enumerate(row)] for r, row in cells]


def drawn(board: Board) -> str:
    """Return the board as text, one line per row."""
    return "\n".join(" ".join(str(tile or ".") for tile in row) for row in board)


async def rollout(
    model: art.TrainableModel, game: int, attempt: int = 0, size: int = 2
) -> art.Trajectory:
    """Play a game to its end. All attempts at a game begin with the same board; the tiles that come
    later are those of the attempt.
    """
    start, dice = random.Random(game), random.Random(f"{game}, {attempt}")
    board = with_tile(with_tile([[0] * size for _ in range(size)], start), start)
    trajectory = art.Trajectory(messages_and_choices=[])
    note, moves, wasted = RULES, 0, 0
    while (
        wasted < MOST_WASTED
        and moves + wasted < MOST_TURNS[size]
        and any(moved(board, move) != board for move in MOVES)
    ):
        shown = f"{note}\n{drawn(board)}".lstrip()
        trajectory.messages_and_choices.append({"role": "user", "content": shown})
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=8
        )
        choice = completion.choices[0]
        trajectory.messages_and_choices.append(choice)
        after = moved(board, (choice.message.content or "").strip().lower())
        if after == board:
            wasted, note = wasted + 1, "Nothing moved."
        else:
            board, moves, note = with_tile(after, dice), moves + 1, ""
    trajectory.reward = sum(map(sum, board)) / GOOD[size]
    trajectory.metrics |= {"moves": moves, "wasted": wasted, "highest": max(map(max, board))}
    return trajectory


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands, on new games in each step."""
    name = args.name or f"{args.size}x{args.size}-001"
    base_model = args.base_model or BASE_MODELS[args.size]
    async with art.TrainableModel(name=name, project="2048", base_model=base_model) as model:
        await model.register(place)
        for step in range(await model.get_step(), args.steps):
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(model, game, n, args.size) for n in range(ATTEMPTS))
                for game in range(step * GAMES, (step + 1) * GAMES)
            )
            await model.train(groups, learning_rate=2e-4, mask_truncated=False)
        await place.close()
    art_command(["plot", str(model.run_dir), "reward/moves", "reward/wasted"])
    figure = ["--out", args.figure] if args.figure else []
    art_command(["plot", str(model.run_dir), "reward/mean", *figure])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=int(os.environ.get("ART_SIZE", "2")))
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", help="instead of the one for this size")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "16")))
    parser.add_argument("--name", help="the run's name, by default 2x2-001; a known one resumes")
    parser.add_argument("--figure", help="a file for the curve")
    args = parser.parse_args()
    if args.size not in GOOD:
        parser.error(f"no board of size {args.size}; there are: {', '.join(map(str, GOOD))}")
    try:
        asyncio.run(main(args, art.backend(args.backend)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
