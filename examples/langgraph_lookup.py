"""An agent of LangGraph: one node names a person, one looks it up, one answers in a word.

    python examples/langgraph_lookup.py               # some minutes on this machine
    python examples/langgraph_lookup.py --steps 24 --name lookup-002

The graph knows nothing of training: inside the rollout, `init_chat_model` gives the trained model,
and each of its answers is recorded with its tokens. Typing it again resumes the run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

import art_core as art
from art_core.cli.main import main as art_command
from art_langgraph import init_chat_model, wrap_rollout

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NAMES = "Ana Ben Tom Mia Leo Eva Max Zoe Sam Ida Jon Amy Dan Kim Lea Rob Sue Tim Joy Pat"
TOWNS = "Rome Paris Oslo Lima Cairo Delhi Bonn Bern Perth Quito"
JOBS = "cook pilot nurse baker judge actor farmer doctor driver painter"
DRAW = random.Random(1)
PEOPLE = {
    name: {"town": DRAW.choice(TOWNS.split()), "job": DRAW.choice(JOBS.split())}
    for name in NAMES.split()
}
TASKS = [
    {"id": f"{name} {field}", "name": name, "question": text.format(name), "answer": person[field]}
    for name, person in PEOPLE.items()
    for field, text in (("town", "Where does {} live?"), ("job", "What does {} work as?"))
]
PLAYED = "Where does Liz live?", "Liz lives in Bern and works as a nurse."
QUESTIONS, ATTEMPTS = 4, 8


def graph_of(chat_model: Any) -> Any:
    """Return the agent: it names a person, looks the person up, and answers."""

    async def name(state: MessagesState) -> dict[str, list[AnyMessage]]:
        played = [HumanMessage(f"Reply with a name. {PLAYED[0]}"), AIMessage("Liz")]
        return {"messages": [await chat_model.ainvoke([*played, state["messages"][0]])]}

    async def look_up(state: MessagesState) -> dict[str, list[AnyMessage]]:
        name = state["messages"][-1].text.strip()
        person = PEOPLE[name]
        text = f"{name} lives in {person['town']} and works as a {person['job']}."
        return {"messages": [HumanMessage(text)]}

    async def answer(state: MessagesState) -> dict[str, list[AnyMessage]]:
        played = [HumanMessage(f"Reply with one word. {PLAYED[1]} {PLAYED[0]}"), AIMessage("Bern")]
        ask = HumanMessage(f"{state['messages'][-1].text} {state['messages'][0].text}")
        return {"messages": [await chat_model.ainvoke([*played, ask])]}

    def is_known(state: MessagesState) -> str:
        return "look_up" if state["messages"][-1].text.strip() in PEOPLE else END

    graph = StateGraph(MessagesState)
    for node in (name, look_up, answer):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "name")
    graph.add_conditional_edges("name", is_known, ["look_up", END])
    graph.add_edge("look_up", "answer")
    graph.add_edge("answer", END)
    return graph.compile()


async def rollout(model: art.TrainableModel, task: dict[str, str]) -> art.Trajectory:
    """Play one attempt: 0.1 if the first word is the person, 0.2 if no other word follows, and 0.7
    for the right answer.
    """

    async def play() -> art.Trajectory:
        graph = graph_of(init_chat_model(temperature=1.0, max_tokens=8))
        messages = (await graph.ainvoke({"messages": [HumanMessage(task["question"])]}))["messages"]
        begun = messages[1].text.split()[:1] == [task["name"]]
        named = messages[1].text.strip() == task["name"]
        right = named and messages[-1].text.strip() == task["answer"]
        reward = 0.1 * begun + 0.2 * named + 0.7 * right
        return art.Trajectory(reward=reward, metrics={"named": named, "right": right})

    return await wrap_rollout(model, play)()


async def main(args: argparse.Namespace, place: art.Backend) -> None:
    """Train up to a step, from wherever the run stands."""
    async with art.TrainableModel(
        name=args.name, project="langgraph-lookup", base_model=args.base_model
    ) as model:
        await model.register(place)
        for step in range(await model.get_step(), args.steps):
            tasks = random.Random(step).sample(TASKS, QUESTIONS)
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(
                    (rollout(model, task) for _ in range(ATTEMPTS)),
                    metadata={"scenario_id": task["id"]},
                )
                for task in tasks
            )
            await model.train(groups, learning_rate=3e-4, mask_truncated=False)
        await place.close()
    curves = [str(model.run_dir), *(f"reward/{part}" for part in ("mean", "named", "right"))]
    art_command(["plot", *curves, *(["--out", args.figure] if args.figure else [])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=os.environ.get("ART_BACKEND", "local"))
    parser.add_argument("--base-model", default=MODEL, help="what it starts from")
    parser.add_argument("--steps", type=int, default=int(os.environ.get("ART_STEPS", "12")))
    parser.add_argument("--name", default="lookup-001", help="the run's name; a known one resumes")
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
