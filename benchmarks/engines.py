"""vLLM against the embedded engine, and both against the trainer: speed, and equal log-probs.

Both engines serve SmolLM2-135M-Instruct with the same LoRA adapter (rank 16, all linear layers, B
not zero) and sample 64 tokens after prompts of 128 tokens at temperature 1, at 1, 8 and 32
sequences together, through the same protocol (`Engine.generate`), in turns within one run. vLLM is
asked for whole answers and for streams. Then the trainer computes the log-probs of what each engine
sampled, in answer to six questions; the mean distance must be at most 0.05 in bfloat16
and 1e-4 in float32. Beside it stands how far vLLM in bfloat16 is from the exact log-probs of the
weights that it has, computed in float32: no trainer can be nearer than that by computing better.
Needs `art engines install vllm`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from art_local.torch_environment import set_torch_environment

set_torch_environment()

import torch  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from art_core.endpoint.engine import Sampling  # noqa: E402
from art_local.engine import TransformersEngine  # noqa: E402
from art_local.engine.protocol import LocalEngine, StepWeights  # noqa: E402
from art_local.engines import choose, start_vllm, wait_ready  # noqa: E402
from art_local.models import resolve_base_model  # noqa: E402
from art_local.models.load import load_model, sharing_parameters  # noqa: E402
from art_local.models.placement import placement  # noqa: E402
from art_local.options import LocalOptions  # noqa: E402
from art_local.session.endpoint import compare  # noqa: E402
from art_local.training.policy import Policy  # noqa: E402
from art_local.vllm.install import environment_path, installed  # noqa: E402

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONCURRENCY = (1, 8, 32)
MOST_APART = {"bfloat16": 0.05, "float32": 1e-4}
"""In bfloat16 two passes of the same weights differ by 0.025 in this model, when one takes the
tokens at once and the other one by one: a single number of 576, rounded the other way in the first
layer, has become as much as all of them when it reaches the last.
"""
ADAPTER = "bench@1"
RANK = 16
QUESTIONS = (
    "What is the capital of France?",
    "Tell me a short story about a river and a stone.",
    "Why is the sky blue? Answer in two sentences.",
    "Write three words that rhyme with winter.",
    "Is fire cold? Answer yes, no or maybe, and say why.",
    "How do I boil an egg?",
)


def prompts(count: int, seed: int, length: int = 128) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(100, 40_000, (count, length), generator=generator).tolist()


def learned_policy(base: Any, dtype: str, *, merged: bool) -> Policy:
    """A policy over the base model whose adapter changes every layer."""
    learner = sharing_parameters(base)
    where = placement("cpu", dtype)
    policy = Policy(
        learner, dtype=where.dtype, lora=(RANK, 2 * RANK), seed=0, merged=merged
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for name, parameter in policy.trained().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.003, generator=generator)
    policy.refresh()
    return policy


def engines(
    directory: Path, dtype: str, folder: Path
) -> tuple[dict[str, Policy], dict[str, LocalEngine]]:
    """Each engine with the policy that trains for it: on merged weights, or on adapters."""
    where = placement("cpu", dtype)
    options = LocalOptions(
        engine="vllm", context_length=2048, lora_rank=RANK, request_timeout_s=300.0
    )
    vllm = start_vllm(choose(options, where), options, where, directory, folder)
    base = load_model(directory, where, where.dtype)
    policies = {
        "transformers": learned_policy(base, dtype, merged=True),
        "vllm": learned_policy(base, dtype, merged=False),
    }
    wait_ready(vllm, progress=True)
    made: dict[str, LocalEngine] = {"transformers": TransformersEngine(base), "vllm": vllm}
    for name, engine in made.items():
        policy = policies[name]
        weights = StepWeights(
            merged=lambda policy=policy: policy.serving,
            write=lambda place, policy=policy: policy.save(place, BASE_MODEL),
        )
        engine.publish(ADAPTER, weights)
    return policies, made


async def timed(engine: LocalEngine, asked: list[list[int]], *, stream: bool) -> float:
    """Tokens a second of all sequences together."""

    async def one(prompt: list[int]) -> int:
        sampling = Sampling(max_tokens=64, stream=stream)
        return len([token async for token in engine.generate(prompt, sampling, ADAPTER)])

    began = time.monotonic()
    tokens = await asyncio.gather(*map(one, asked))
    return sum(tokens) / (time.monotonic() - began)


async def speeds(made: dict[str, LocalEngine], rounds: int) -> dict[str, dict[int, float]]:
    ways = {
        "transformers": (made["transformers"], False),
        "vllm": (made["vllm"], False),
        "vllm, streamed": (made["vllm"], True),
    }
    for engine, stream in ways.values():
        await timed(engine, prompts(2, seed=99), stream=stream)
    found: dict[str, dict[int, float]] = {way: {} for way in ways}
    for count in CONCURRENCY:
        samples: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds):
            for place, (way, (engine, stream)) in enumerate(ways.items()):
                # prompts of their own: a cached prefix would be no work
                asked = prompts(count, seed=1000 * count + 10 * turn + place)
                samples[way].append(await timed(engine, asked, stream=stream))
        for way, values in samples.items():
            found[way][count] = statistics.median(values)
    return found


def chat_prompts(directory: Path) -> list[list[int]]:
    """What rollouts ask: text that the model was taught to answer."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    render = partial(
        tokenizer.apply_chat_template, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return [render([{"role": "user", "content": question}]) for question in QUESTIONS]


def exact_policy(directory: Path) -> Policy:
    """The policy of vLLM's bfloat16 weights and adapter, computed in float32."""
    where = placement("cpu", "float32")
    base = load_model(directory, where, where.dtype)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return learned_policy(base, "float32", merged=False)


def apart(policy: Policy, engine: LocalEngine, directory: Path) -> float:
    """Mean distance of engine and trainer over the answers to several questions."""
    found = [compare(engine, policy, prompt, ADAPTER) for prompt in chat_prompts(directory)]
    return statistics.fmean(agreement.mean for agreement in found)


def report(found: dict[str, dict[int, float]]) -> None:
    print(f"{'new tokens/s at':<18}" + "".join(f"{count:>8}" for count in CONCURRENCY))
    for way, values in found.items():
        print(f"{way:<18}" + "".join(f"{values[count]:>8.0f}" for count in CONCURRENCY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-log-probs", action="store_true", help="leave the speed out")
    arguments = parser.parse_args()
    if installed() is None:
        print(f"vLLM is not installed in {environment_path()}: art engines install vllm")
        print(json.dumps({"name": "engines", "skipped": "vLLM is not installed", "held": True}))
        return
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    directory = resolve_base_model(BASE_MODEL)
    figures: dict[str, float] = {}
    found: dict[str, dict[int, float]] = {}
    for dtype in MOST_APART:
        with tempfile.TemporaryDirectory() as folder:
            policies, made = engines(directory, dtype, Path(folder))
            try:
                if dtype == "bfloat16" and not arguments.only_log_probs:
                    found = asyncio.run(speeds(made, arguments.rounds))
                    report(found)
                for name, engine in made.items():
                    figures[f"{name}_{dtype}_apart"] = distance = apart(
                        policies[name], engine, directory
                    )
                    print(f"{name} in {dtype}: {distance:.2g} nats from the trainer, in the mean")
                if dtype == "bfloat16":
                    exact = apart(exact_policy(directory), made["vllm"], directory)
                    figures["vllm_bfloat16_from_exact"] = exact
                    print(f"vllm in {dtype}: {exact:.2g} nats from exact log-probs, in the mean")
            finally:
                for engine in made.values():
                    asyncio.run(engine.close())
    for count in CONCURRENCY if found else ():
        embedded, vllm = found["transformers"][count], found["vllm"][count]
        figures[f"vllm_over_transformers_at_{count}"] = vllm / embedded
        figures[f"whole_over_streamed_at_{count}"] = vllm / found["vllm, streamed"][count]
    held = all(
        figures[f"{name}_{dtype}_apart"] <= most
        for dtype, most in MOST_APART.items()
        for name in ("transformers", "vllm")
    )
    targets = {f"{dtype}_apart": most for dtype, most in MOST_APART.items()}
    rounded = {name: float(f"{value:.3g}") for name, value in figures.items()}
    print(json.dumps({"name": "engines", **rounded, "targets": targets, "held": held}))
    sys.exit(not held)


if __name__ == "__main__":
    main()
