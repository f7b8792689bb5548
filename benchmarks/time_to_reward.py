"""Seconds until a task is learned: art-core against TRL's GRPOTrainer, rollouts and all.

    python benchmarks/time_to_reward.py --trl-python PATH [--seeds 3]

TRL lives in an environment of its own:

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl==1.16.0 peft

The task is examples/yes_no_maybe.py: SmolLM2-135M answers six questions with one word. Both sides
train LoRA (rank 8, alpha 16, all linear layers) in fp32 with the `cispo` loss, AdamW at 3e-4 and
clip 1, on eight answers to each question a step, sampled at temperature 1 with at most 8 tokens;
both have the threads that they take by default. The clock runs from before the model is loaded
until the mean reward of a step's answers passes 0.6. Each run is a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "yes_no_maybe.py"
REWARDS = {"maybe": 1.0, "no": 0.75, "yes": 0.5}
QUESTIONS = (
    "Is the sky blue?",
    "Can fish swim?",
    "Is fire cold?",
    "Do cats bark?",
    "Is snow white?",
    "Is ice hot?",
)
GOAL, MAX_STEPS, ANSWERS, MAX_TOKENS, RATE, RANK, ALPHA = 0.6, 40, 8, 8, 3e-4, 8, 16
INSTALL = (
    "python -m venv trl && trl/bin/pip install torch==2.13.0 && "
    "trl/bin/pip install trl==1.16.0 peft"
)
TARGETS = {"seconds_ratio_min": 8.0, "first_step_ratio_max": 1.15}


def prompt(question: str) -> str:
    return f"Answer with exactly one word: yes, no or maybe. {question}"


def reward(text: str, *, ended: bool) -> float:
    return REWARDS.get(text.strip(), 0.0) if ended else 0.0


def same_task() -> None:
    """Fail if the example has changed."""
    spec = importlib.util.spec_from_file_location("yes_no_maybe", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert (example.QUESTIONS, example.REWARDS) == (QUESTIONS, REWARDS)
    assert example.asked(QUESTIONS[0])[0]["content"] == prompt(QUESTIONS[0])


async def run_ours(model_directory: str, seed: int) -> tuple[list[float], list[float]]:
    """Return the mean reward of each step, and the seconds at which it was known."""
    import art_core as art

    started, means, seconds = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory() as runs:
        model = art.TrainableModel(
            name="agent", project="time", base_model=model_directory, base_path=runs, sinks=[]
        )
        backend = art.backend(
            "local", device="cpu", dtype="float32", lora_rank=RANK, lora_alpha=ALPHA, seed=seed,
            progress=False,
        )  # fmt: skip
        await model.register(backend)
        client = model.openai_client()

        async def rollout(question: str, number: int) -> art.Trajectory:
            messages = [{"role": "user", "content": prompt(question)}]
            answer = await client.chat.completions.create(
                model=model.get_inference_name(), messages=messages, max_tokens=MAX_TOKENS,
                seed=number,
            )  # fmt: skip
            choice = answer.choices[0]
            found = reward(choice.message.content or "", ended=choice.finish_reason == "stop")
            return art.Trajectory(messages_and_choices=[*messages, choice], reward=found)

        for step in range(MAX_STEPS):
            first = ((seed + 1) * MAX_STEPS + step) * 1000
            groups = await art.gather_trajectory_groups(
                art.TrajectoryGroup(rollout(q, first + 10 * i + n) for n in range(ANSWERS))
                for i, q in enumerate(QUESTIONS)
            )
            means.append(statistics.mean(t.reward for group in groups for t in group))
            seconds.append(time.perf_counter() - started)
            if means[-1] > GOAL:
                break
            await model.train(
                groups, learning_rate=RATE, mask_truncated=False, save_checkpoint=False
            )
        for opened in (client, model, backend):
            await opened.close()
    return means, seconds


def run_trl(model_directory: str, seed: int) -> tuple[list[float], list[float]]:
    """TRL's own loop: its rollouts, its step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    started, means, seconds = time.perf_counter(), [], []
    tokenizer = AutoTokenizer.from_pretrained(model_directory)

    def rewards(completions, completion_ids, **_):
        found = []
        for turns, ids in zip(completions, completion_ids, strict=True):
            ended = len(ids) < MAX_TOKENS or ids[-1] == tokenizer.eos_token_id
            found.append(reward(turns[0]["content"], ended=ended))
        means.append(statistics.mean(found))
        seconds.append(time.perf_counter() - started)
        return found

    class Stop(TrainerCallback):
        def on_step_end(self, _args, _state, control, **_):
            control.should_training_stop = means[-1] > GOAL

    batch = ANSWERS * len(QUESTIONS)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, num_generations=ANSWERS,
        max_steps=MAX_STEPS, max_completion_length=MAX_TOKENS, beta=0.0, temperature=1.0,
        loss_type="cispo", epsilon_high=4.0, scale_rewards="none", learning_rate=RATE,
        lr_scheduler_type="constant", adam_beta2=0.99, max_grad_norm=1.0, report_to="none",
        save_strategy="no", logging_steps=1000, use_cpu=True, bf16=False, shuffle_dataset=False,
        gradient_checkpointing=False, disable_tqdm=True, seed=seed,
    )  # fmt: skip
    asked = [[{"role": "user", "content": prompt(q)}] for q in QUESTIONS]
    GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": asked * MAX_STEPS}),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"),
        callbacks=[Stop()],
    ).train()
    return means, seconds


def measure(python: str, side: str, model: str, seed: int) -> dict[str, object]:
    """Run one side once, in a process of its own."""
    command = [python, __file__, "--side", side, "--model", model, "--seed", str(seed)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    reached = found["means"][-1] > GOAL
    print(
        f"{side:5} seed {seed}: {found['seconds'][-1]:6.1f} s, {len(found['means'])} steps, "
        f"{found['peak_gb']:.1f} GB{'' if reached else ', not reached'}",
        flush=True,
    )
    return {**found, "reached": reached}


def compare(trl_python: str, seeds: int) -> int:
    """Print both sides' seconds, and the figures as one line of JSON."""
    from art_local.models import resolve_base_model

    same_task()
    model = str(resolve_base_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
    found: dict[str, list[dict[str, object]]] = {"ours": [], "trl": []}
    for seed in range(seeds):
        for side, python in (("ours", sys.executable), ("trl", trl_python)):
            found[side].append(measure(python, side, model, seed))
    seconds = {side: [run["seconds"][-1] for run in runs] for side, runs in found.items()}
    gaps = [[b - a for a, b in itertools.pairwise(r["seconds"])] for r in found["ours"]]
    figures = {
        "ours_seconds": [round(s, 1) for s in seconds["ours"]],
        "trl_seconds": [round(s, 1) for s in seconds["trl"]],
        "ours_peak_gb": round(max(run["peak_gb"] for run in found["ours"]), 2),
        "trl_peak_gb": round(max(run["peak_gb"] for run in found["trl"]), 2),
        "seconds_ratio": round(
            statistics.median(seconds["trl"]) / statistics.median(seconds["ours"]), 2
        ),
        "first_step_ratio": round(
            statistics.median(gap[0] / statistics.median(gap[1:]) for gap in gaps), 2
        ),
    }
    held = (
        all(run["reached"] for runs in found.values() for run in runs)
        and figures["seconds_ratio"] >= TARGETS["seconds_ratio_min"]
        and figures["first_step_ratio"] <= TARGETS["first_step_ratio_max"]
    )
    print(
        json.dumps({"name": "time_to_reward", "figures": figures, "targets": TARGETS, "held": held})
    )
    return 0 if held else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is None:
        if not args.trl_python:
            print(f"TRL is not installed: {INSTALL}\nthen give --trl-python trl/bin/python")
            line = {"name": "time_to_reward", "figures": {}, "targets": TARGETS, "held": None}
            print(json.dumps(line | {"skipped": "TRL is not installed"}))
            return 0
        return compare(args.trl_python, args.seeds)
    ours = args.side == "ours"
    means, seconds = (
        asyncio.run(run_ours(args.model, args.seed)) if ours else run_trl(args.model, args.seed)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"means": means, "seconds": seconds, "peak_gb": peak}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
