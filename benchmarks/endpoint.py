"""Overhead of the endpoint and the client over the engine: latency, rollouts per second, CPU.

Agents hold conversations of three turns, 16 to 32 new tokens each, with SmolLM2-135M-Instruct in
bf16, 1, 32 and 256 of them at a time. "endpoint" is what a rollout does: `Trajectory.messages()`,
the model's openai client with token ids and log-probs, HTTP, the chat template, the engine, JSON
back, the choice appended. "engine" is the same embedded engine in the same process, given the same
prompt ids and lengths through `generate`. Both run in turns, so that the ratios hold on a noisy
machine; client, endpoint and engine share one process and its cores, as they do in training. The
same is measured over Responses, each turn by `previous_response_id`, and over Messages.

Added latency is the p50 (p99) of all turns over the endpoint, of all rounds together, over that of
the engine directly. A quiet machine needs about 12 minutes for each protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from art_local.torch_environment import set_torch_environment

set_torch_environment()

import attrs  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

import art_core as art  # noqa: E402
from art_core.client.openai_client import openai_client  # noqa: E402
from art_core.endpoint.engine import Sampling, ServedModel  # noqa: E402
from art_core.endpoint.host import EndpointHost  # noqa: E402
from art_local.engine import TransformersEngine  # noqa: E402
from art_local.models import resolve_base_model  # noqa: E402
from art_local.models.load import silence_logs  # noqa: E402

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROUNDS = {1: 12, 32: 4, 256: 2}
TURNS = 3
NEW_TOKENS = (16, 32)
MOST_ADDED_P50 = 0.05
WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "silver", "window", "letter")


@attrs.frozen
class Turn:
    """What one turn took, and the prompt and length that its repetition is given."""

    seconds: float
    prompt_ids: tuple[int, ...]
    tokens: int


@attrs.frozen
class Run:
    """One pass of all agents: seconds on the wall, seconds of CPU, and the turns of each agent."""

    wall_s: float
    cpu_s: float
    agents: list[list[Turn]]


def latency(runs: Iterable[Run], percent: int) -> float:
    """A percentile of the seconds of a turn, over several runs."""
    seconds = sorted(turn.seconds for run in runs for turns in run.agents for turn in turns)
    return seconds[min(len(seconds) * percent // 100, len(seconds) - 1)]


class OneModel:
    """Serves the base weights under one name."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def names(self) -> list[str]:
        return [self._served.name]

    async def resolve(self, name: str) -> ServedModel:
        assert name == self._served.name
        return self._served


def lengths(agent: int) -> list[int]:
    """How many tokens each turn of an agent has."""
    return [random.Random(100 * agent + turn).randint(*NEW_TOKENS) for turn in range(TURNS)]


def question(agent: int, turn: int) -> str:
    """A message of about 20 words, different for each agent and turn."""
    words = random.Random(f"{agent} {turn}").choices(WORDS, k=18)
    return f"{agent}: tell me of {' '.join(words)}."


async def chat(client: Any, agent: int) -> list[Turn]:
    """A conversation as a user's rollout holds it."""
    trajectory, turns = art.Trajectory(messages_and_choices=[]), []
    for turn, tokens in enumerate(lengths(agent)):
        trajectory.messages_and_choices.append({"role": "user", "content": question(agent, turn)})
        started = time.perf_counter()
        completion = await client.chat.completions.create(
            model="smol@0", messages=trajectory.messages(), max_completion_tokens=tokens, seed=agent
        )
        seconds = time.perf_counter() - started
        choice = completion.choices[0]
        trajectory.messages_and_choices.append(choice)
        turns.append(Turn(seconds, tuple(choice.prompt_token_ids), len(choice.token_ids)))
    return turns


async def responses(client: Any, agent: int) -> list[Turn]:
    """The same conversation over Responses: each turn continues the one before."""
    turns, previous = [], None
    own = {"seed": agent, "return_token_ids": True}
    for turn, tokens in enumerate(lengths(agent)):
        started = time.perf_counter()
        answer = await client.responses.create(
            model="smol@0", input=question(agent, turn), max_output_tokens=tokens,
            previous_response_id=previous, extra_body=own,
        )  # fmt: skip
        seconds, previous = time.perf_counter() - started, answer.id
        turns.append(Turn(seconds, tuple(answer.prompt_token_ids), len(answer.token_ids)))
    return turns


async def messages(client: Any, agent: int) -> list[Turn]:
    """The same conversation over Messages, without Anthropic's client."""
    said, turns = [], []
    own = {"model": "smol@0", "seed": agent, "return_token_ids": True}
    for turn, tokens in enumerate(lengths(agent)):
        said.append({"role": "user", "content": question(agent, turn)})
        body = {**own, "messages": said, "max_tokens": tokens}
        started = time.perf_counter()
        answer = await client.post("/messages", cast_to=object, body=body)
        seconds = time.perf_counter() - started
        said.append({"role": "assistant", "content": answer["content"]})
        turns.append(Turn(seconds, tuple(answer["prompt_token_ids"]), len(answer["token_ids"])))
    return turns


Rollout = Callable[[Any, int], Awaitable[list[Turn]]]
PROTOCOLS: dict[str, Rollout] = {"chat": chat, "responses": responses, "messages": messages}


async def repetition(engine: TransformersEngine, agent: int, turns: list[Turn]) -> list[Turn]:
    """The same turns directly in the engine."""
    repeated = []
    for turn in turns:
        sampling = Sampling(max_tokens=turn.tokens, seed=agent)
        started = time.perf_counter()
        sampled = [token async for token in engine.generate(turn.prompt_ids, sampling)]
        assert len(sampled) == turn.tokens
        repeated.append(attrs.evolve(turn, seconds=time.perf_counter() - started))
    return repeated


async def timed(agents: list[Callable[[], Awaitable[list[Turn]]]]) -> Run:
    """Run agents at the same time."""
    wall, cpu = time.perf_counter(), time.process_time()
    turns = await asyncio.gather(*[agent() for agent in agents])
    return Run(time.perf_counter() - wall, time.process_time() - cpu, list(turns))


async def over_endpoint(client: Any, rollout: Rollout, count: int) -> Run:
    """All agents over the endpoint."""
    return await timed([lambda n=n: rollout(client, n) for n in range(count)])


async def by_engine(engine: TransformersEngine, seen: Run) -> Run:
    """The turns of a run directly in the engine."""
    return await timed(
        [
            lambda n=n, turns=turns: repetition(engine, n, turns)
            for n, turns in enumerate(seen.agents)
        ]
    )


async def rounds_of(
    client: Any, rollout: Rollout, engine: TransformersEngine, count: int, rounds: int
) -> list[tuple[Run, Run]]:
    """Run both in turns; which goes first alternates, so that a changing load favours neither.

    A first run is left out: the engine keeps what it computed for a prompt, so that the side that
    sees the prompts first would pay for both.
    """
    await over_endpoint(client, rollout, count)
    pairs: list[tuple[Run, Run]] = []
    for number in range(rounds):
        if number % 2:
            bare = await by_engine(engine, pairs[-1][0])
            ours = await over_endpoint(client, rollout, count)
        else:
            ours = await over_endpoint(client, rollout, count)
            bare = await by_engine(engine, ours)
        pairs.append((ours, bare))
    return pairs


def figures_of(protocol: str, count: int, rounds: list[tuple[Run, Run]]) -> dict[str, float]:
    """The figures of a protocol and a number of agents, and a printed line."""

    def middle(of: Callable[[Run, Run], float]) -> float:
        return statistics.median(of(ours, bare) for ours, bare in rounds)

    over_endpoint, alone = zip(*rounds, strict=True)
    found = {
        "added_p50": latency(over_endpoint, 50) / latency(alone, 50) - 1,
        "added_p99": latency(over_endpoint, 99) / latency(alone, 99) - 1,
        "engine_p50_ms": 1e3 * latency(alone, 50),
        "rollouts_per_s": middle(lambda ours, _: count / ours.wall_s),
        "rollouts_ratio": middle(lambda ours, bare: bare.wall_s / ours.wall_s),
        "added_cpu_ms_per_turn": 1e3
        * middle(lambda ours, bare: (ours.cpu_s - bare.cpu_s) / (count * TURNS)),
        "cpu_ratio": middle(lambda ours, bare: ours.cpu_s / bare.cpu_s),
    }
    print(
        f"{protocol:>9} {count:>6} {found['engine_p50_ms']:>10.0f} {found['added_p50']:>+9.1%} "
        f"{found['added_p99']:>+9.1%} {found['rollouts_per_s']:>11.2f} "
        f"{found['rollouts_ratio']:>6.2f} {found['added_cpu_ms_per_turn']:>12.2f} "
        f"{found['cpu_ratio']:>6.2f}",
        flush=True,
    )
    kind = "" if protocol == "chat" else f"_{protocol}"
    return {f"{name}{kind}_{count}": round(value, 4) for name, value in found.items()}


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """Measure every number of agents."""
    directory = resolve_base_model(options.model)
    with silence_logs():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    # Only the endpoint asks for an end token; the repetition is as long as the answer was.
    model.generation_config.eos_token_id = None
    engine = TransformersEngine(model)
    served = ServedModel(
        engine=engine, tokenizer=tokenizer, adapter="base", name="smol@0", policy_version=0
    )
    figures: dict[str, float] = {}
    with EndpointHost(OneModel(served)) as host:
        endpoint = art.Endpoint(base_url=host.base_url, api_key=host.api_key, model_name="smol")
        async with openai_client(endpoint, trainable=True) as client:
            for protocol in options.protocols:
                rollout = PROTOCOLS[protocol]
                await rounds_of(client, rollout, engine, 2, 1)
                for count in options.agents:
                    rounds = options.rounds or ROUNDS.get(count, 2)
                    pairs = await rounds_of(client, rollout, engine, count, rounds)
                    figures |= figures_of(protocol, count, pairs)
    await engine.close()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BASE_MODEL)
    parser.add_argument("--agents", type=int, nargs="+", default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=list(PROTOCOLS))
    options = parser.parse_args()
    print(
        f"{'protocol':>9} {'agents':>6} {'engine p50':>10} {'added p50':>9} {'added p99':>9} "
        f"{'rollouts/s':>11} {'ratio':>6} {'CPU ms/turn':>12} {'ratio':>6}"
    )
    figures = asyncio.run(measure(options))
    targets = {name: MOST_ADDED_P50 for name in figures if name.startswith("added_p50")}
    held = all(figures[name] <= most for name, most in targets.items())
    print(json.dumps({"name": "endpoint", "figures": figures, "targets": targets, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
