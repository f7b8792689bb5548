"""ART·E: an agent searches mails, reads one and answers a question; some minutes on a laptop.

    python examples/art_e.py                 # a small model on this machine
    OPENAI_API_KEY=... python examples/art_e.py --judge gpt-4.1 --baseline gpt-4.1-mini
    python examples/art_e.py --base-model Qwen/Qwen3-4B-Instruct-2507 --questions 16 --steps 60

The reward has exact parts; with --judge, half of it is RULER's score. At the end, new questions
compare the model with --baseline, a prompted model, else with its own step 0. Judge and baseline
are asked at OPENAI_BASE_URL, by default at OpenAI. Typing it again resumes the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sqlite3
import time

import art_core as art
from art_core import rewards
from art_core.cli.main import main as art_command

PEOPLE = "Ana Ben Tom Mia Leo Eva Max Zoe Sam Ida Jon Amy Dan Kim Lea Rob Sue Tim Joy Pat"
EVENTS = "picnic concert meeting party lunch match walk sale race wedding movie game trip show exam"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
RULES = "Reply with one command: search, read or answer. First search, then read, then answer."
PLAYED = """On which day is the picnic of Paul?
search picnic Paul
4 Paul: picnic and party, 2 Liz: race and picnic
read 4
From Paul: the picnic is on Friday and the party is on Sunday.
answer Friday"""
SEARCH = "SELECT rowid, header FROM mails WHERE mails MATCH ? ORDER BY rank LIMIT 3"
WEIGHTS = {"found": 0.2, "read": 0.3, "right": 0.5}
NEW, REPEATS = 24, 2  # questions that are not trained on, and answers to each


def archive() -> tuple[sqlite3.Connection, list[dict[str, str]]]:
    """Return an index of 140 mails, each about two events, and a question about each mail."""
    mails, draw, tasks = sqlite3.connect(":memory:"), random.Random(1), list[dict[str, str]]()
    mails.execute("CREATE VIRTUAL TABLE mails USING fts5(header, body)")
    for person in PEOPLE.split():
        events = draw.sample(EVENTS.split(), 14)
        for first, second in zip(events[::2], events[1::2], strict=True):
            days, number = draw.sample(DAYS.split(), 2), str(len(tasks) + 1)
            header = f"{number} {person}: {first} and {second}"
            body = f"From {person}: the {first} is on {days[0]} and the {second} is on {days[1]}."
            mails.execute("INSERT INTO mails VALUES (?, ?)", (header, body))
            event, day = draw.choice([(first, days[0]), (second, days[1])])
            question = f"On which day is the {event} of {person}?"
            tasks.append({"id": number, "question": question, "answer": day})
    return mails, tasks


MAILS, TASKS = archive()


async def rollout(model: art.Model, task: dict[str, str]) -> art.Trajectory:
    """Let the model search and read until it answers, or writes something else."""
    attempt = art.Trajectory(messages_and_choices=[{"role": "system", "content": RULES}])
    messages = attempt.messages_and_choices
    for turn, text in enumerate([*PLAYED.split("\n"), task["question"]]):
        messages.append({"role": ("user", "assistant")[turn % 2], "content": text})
    parts, number = dict.fromkeys(WEIGHTS, 0.0), int(task["id"])
    for _ in range(4):
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=attempt.messages(), max_tokens=12
        )
        messages.append(completion.choices[0])
        said = re.match(r"(search|read|answer) (.*\w.*)$", attempt.messages()[-1]["content"] or "")
        command, words = said.groups() if said else ("", "")
        if command == "search":
            any_word = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", words))
            shown = dict(MAILS.execute(SEARCH, (any_word,)))
            parts["found"] = max(parts["found"], number in shown)
        elif command == "read":
            shown = dict(MAILS.execute("SELECT rowid, body FROM mails WHERE rowid = ?", (words,)))
            parts["read"] = max(parts["read"], number in shown)
        else:  # the answer from a mail that was not read is a guess
            parts["right"] = parts["read"] * rewards.exact_match(words, task["answer"])
            break
        messages.append({"role": "user", "content": ", ".join(shown.values()) or "no mail"})
    await art.reward(attempt, parts, weights=WEIGHTS)
    return attempt


async def judged(group: art.TrajectoryGroup, judge: str) -> art.TrajectoryGroup | None:
    """Make half of each reward RULER's score; a group that could not be judged is left out."""
    scored = await art.ruler_score_group(group, judge, swallow_exceptions=True)
    for attempt in scored or ():
        attempt.reward = (attempt.reward + attempt.metrics["independent_reward"]) / 2
    return scored


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands, and compare on new questions."""
    name, base, n = args.name, args.base_model, args.attempts
    judge = (lambda group: judged(group, f"openai/{args.judge}")) if args.judge else None
    async with art.TrainableModel(name=name, project="art-e", base_model=base) as model:
        await model.register(place)
        for step in range(await model.get_step(), args.steps):
            tasks = random.Random(step).sample(TASKS[NEW:], args.questions)
            groups = [art.TrajectoryGroup(rollout(model, t) for _ in range(n)) for t in tasks]
            groups = await art.gather_trajectory_groups(groups, after_each=judge)
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)  # too long is wrong
        prompted = art.Model(
            name="prompted",
            project="art-e",
            inference_model_name=args.baseline,
            inference_base_url=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
            inference_api_key=os.environ.get("OPENAI_API_KEY"),
        )
        other = (prompted, None) if args.baseline else (model, 0)
        for each, at in ((model, await model.get_step()), other):
            start = time.monotonic()
            (found,) = await art.evaluate(each, TASKS[:NEW], rollout, step=at, repeats=REPEATS)
            hours = (time.monotonic() - start) / 3600 if each is model else 0
            usd = found.usd + hours * args.usd_per_hour / (NEW * REPEATS)
            print(f"{each.name}@{found.step}: {found.reward.mean:.3f}, ${usd:.7f} an answer")
        await prompted.close()
        await place.close()
    art_command(["compare", f"art-e/{name}@{args.steps}", f"art-e/{other[0].name}@0"])
    curves = [str(model.run_dir), *(f"reward/{part}" for part in ("mean", *WEIGHTS))]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--name", default="art-e-001", help="the run's name; a known one resumes")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "24")))
    parser.add_argument("--questions", type=int, default=4, help="in each step")
    parser.add_argument("--attempts", type=int, default=16, help="at each question")
    parser.add_argument("--judge", help="a model that gives half of the reward, by RULER")
    parser.add_argument("--baseline", help="a prompted model to compare with")
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
