"""AutoRL: a task in one sentence. A model writes the scenarios, and RULER rewards the answers.

    OPENAI_API_KEY=... python examples/auto_rl.py "Answer a child's question in one short sentence."
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python examples/auto_rl.py TASK --judge my-model
    python examples/auto_rl.py TASK --mcp "python shop_server.py"   # a task for these tools

Judge and writer are asked at OPENAI_BASE_URL, by default at OpenAI; without --writer the model
itself writes. At the end the judge compares the last step's answers to new scenarios with those of
step 0. Run it again to resume.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shlex
from functools import partial
from typing import Any

import art_core as art
from art_core.cli.main import main as art_command

TASK = "Answer a child's question in one short sentence."
ASK = 'Write a numbered list of 10 short, different inputs for this task: "{}"'
INPUT = re.compile(r'^\d+[.)]\W*(\w+ \w+ .{1,70}?)"?$', re.MULTILINE)
GROUPS, ATTEMPTS, NEW = 4, 8, 8
URL = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
Scenario = dict[str, Any]


async def written(writer: Any, task: str, n: int) -> list[Scenario]:
    """Return scenarios that a model writes; it is asked until there are enough different ones."""
    client, found = writer.openai_client(), dict[str, None]()
    asked: Any = {"role": "user", "content": ASK.format(task)}
    options = {"model": writer.get_inference_name(), "max_tokens": 200, "temperature": 0.7}
    while len(found) < n:
        requests = (client.chat.completions.create(messages=[asked], **options) for _ in range(8))
        texts = [each.choices[0].message.content or "" for each in await asyncio.gather(*requests)]
        more = [line for text in texts for line in INPUT.findall(text) if line not in found]
        if not more:
            raise art.RolloutError("the writer writes no numbered list", "Choose another --writer.")
        found |= dict.fromkeys(more)
    return [{"id": str(place), "task": text} for place, text in enumerate(list(found)[:n])]


async def answer(model: Any, scenario: Scenario, task: str) -> art.Trajectory:
    """Let the model answer a scenario; a judge of the whole group gives the reward."""
    asked = [{"role": "system", "content": task}, {"role": "user", "content": scenario["task"]}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=asked, max_tokens=40
    )
    return art.Trajectory(messages_and_choices=[*asked, completion.choices[0]])


def task_of(args: argparse.Namespace, writer: Any) -> tuple[Any, Any]:
    """Return the rollout, and a coroutine that makes the scenarios."""
    n = NEW + args.scenarios
    if not args.mcp:
        return partial(answer, task=args.task), written(writer, args.task, n)
    from art_mcp import McpEnvironment, McpServer, generate_scenarios

    server = McpServer(command=shlex.split(args.mcp))
    rollout = art.rollout_of(lambda: McpEnvironment(server, instructions=args.task))
    return rollout, generate_scenarios(server, n, model=writer, instructions=args.task)


async def compare(model: art.TrainableModel, rollout: Any, new: list[Scenario], judge: Any) -> None:
    """Let the judge compare answers of two steps to each new scenario, and print the result."""
    last = await model.get_step()
    pairs = []
    for step in (0, last):
        (found,) = await art.evaluate(model, new, rollout, step=step)
        pairs.append({group.metadata["scenario_id"]: group.trajectories for group in found.groups})
    groups = [art.TrajectoryGroup([*pairs[0][name], *pairs[1][name]]) for name in pairs[0]]
    with model.metrics_builder("eval").activate_context():  # whose run pays the judge
        judged = [(await judge(group)).rewards for group in groups]
    better = sum(second > first for first, second in judged)
    means = [sum(scores) / len(judged) for scores in zip(*judged, strict=True)]
    print(f"step {last} is better in {better} of {len(judged)} new scenarios, ", end="")
    print(f"with a mean score of {means[1]:.2f}; that of step 0 is {means[0]:.2f}")


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands."""
    judge = partial(art.ruler_score_group, judge_model=f"openai/{args.judge}")
    at: Any = {
        "inference_base_url": URL,
        "inference_api_key": os.environ.get("OPENAI_API_KEY", "none"),
    }
    async with (
        art.TrainableModel(name=args.name, project="auto-rl", base_model=args.base_model) as model,
        art.Model(
            name="writer", project="auto-rl", inference_model_name=args.writer, **at
        ) as other,
    ):
        await model.register(place)
        rollout, making = task_of(args, other if args.writer else model)
        if "scenarios" not in model.read_state():
            model.merge_state({"scenarios": await making})
        making.close()
        scenarios = model.read_state()["scenarios"]
        for step in range(await model.get_step(), args.steps):
            chosen = random.Random(step).sample(scenarios[NEW:], GROUPS)
            groups = await art.gather_trajectory_groups(
                (
                    art.TrajectoryGroup(
                        (rollout(model, each) for _ in range(ATTEMPTS)),
                        metadata={"scenario_id": each["id"]},
                    )
                    for each in chosen
                ),
                after_each=partial(judge, swallow_exceptions=True),
            )
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        await compare(model, rollout, scenarios[:NEW], judge)
        await place.close()
    figure = ["--out", args.figure] if args.figure else []
    art_command(["plot", str(model.run_dir), "reward/mean", *figure])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", default=TASK, help="in one sentence")
    parser.add_argument("--judge", default="gpt-4.1-mini", help="the model that compares answers")
    parser.add_argument("--writer", help="the model that writes scenarios, if not the trained one")
    parser.add_argument("--mcp", metavar="COMMAND", help="an MCP server whose tools are used")
    parser.add_argument("--scenarios", type=int, default=24, help="to train on")
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "8")))
    parser.add_argument("--name", default="auto-rl-001", help="the run's name; a known one resumes")
    parser.add_argument("--figure", help="a file for the curve")
    args = parser.parse_args()
    if not os.environ.keys() & {"OPENAI_API_KEY", "OPENAI_BASE_URL"}:
        parser.error("no judge: set OPENAI_API_KEY, or OPENAI_BASE_URL to an endpoint of yours")
    try:
        asyncio.run(main(args, art.backend(args.backend)))
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; type it again to resume\n")
    except art.ArtError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
