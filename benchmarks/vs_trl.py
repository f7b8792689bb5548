"""One GRPO step of art-local against TRL's GRPOTrainer: the same model, the same tokens.

    python benchmarks/vs_trl.py --trl-python PATH [--repeats 3] [--layers 4]

TRL lives in an environment of its own:

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl==1.16.0 peft

A random Qwen3 (hidden 512, vocabulary 151,936) trains LoRA (rank 16, alpha 32, all linear layers)
in fp32 on both sides, without gradient checkpointing, eight rows a step: the `cispo` loss on-policy
(ratio 1), its token mean over the step, AdamW, clip 1. TRL runs its own training step; its rollouts
are a function that returns the rows as they were drawn. `grouped` rows share a prompt of 256
tokens, `apart` ones share nothing; 64 tokens of each bear loss. Each side runs in a process of its
own, in turns; its figures are the best of its steps and the process's peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT, COMPLETION, ROWS, VOCABULARY = 256, 64, 8, 151_936
RANK, ALPHA, STEPS = 16, 32, 3
INSTALL = (
    "python -m venv trl && trl/bin/pip install torch==2.13.0 && "
    "trl/bin/pip install trl==1.16.0 peft"
)
TARGETS = {
    "grouped_tokens_per_s_ratio_min": 1.5,
    "apart_tokens_per_s_ratio_min": 1.0,
    "memory_ratio_max": 0.8,
    "loss_difference_max": 1e-4,
}


def rows(kind: str) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Return prompts, completions and rewards of one step."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1000, VOCABULARY - 1000) for _ in range(count)]

    shared = tokens(PROMPT)
    prompts = [shared if kind == "grouped" else tokens(PROMPT) for _ in range(ROWS)]
    completions = [tokens(COMPLETION) for _ in range(ROWS)]
    # an uneven share of good ones: else all advantages cancel in the loss
    return prompts, completions, [float(row % 4 == 0) for row in range(ROWS)]


def write_model(directory: Path, layers: int) -> None:
    """Write the random model and a tokenizer, which TRL asks for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    from art_local.testing.tiny import save_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(directory / "tiny"))
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")


def run_ours(model: Path, kind: str) -> tuple[list[float], float]:
    """Return the seconds of each step and the loss of the first."""
    import torch

    from art_core.rl.config import TrainConfig
    from art_core.rl.sequences import TokenSequence
    from art_local.models.load import load_model
    from art_local.models.placement import placement
    from art_local.torch_environment import set_torch_environment
    from art_local.training.policy import Policy
    from art_local.training.trainer import Trainer

    set_torch_environment()
    prompts, completions, rewards = rows(kind)
    mean = statistics.mean(rewards)
    sequences = [
        TokenSequence(
            token_ids=tuple(prompt + completion),
            trainable=(False,) * PROMPT + (True,) * COMPLETION,
            # not known: the step is on-policy, as TRL's is
            logprobs=(0.0,) * PROMPT + (math.nan,) * COMPLETION,
            advantage=reward - mean,
            weight=1 / COMPLETION,
        )
        for prompt, completion, reward in zip(prompts, completions, rewards, strict=True)
    ]
    base = load_model(model, placement("cpu", "float32"), torch.float32)
    policy = Policy(base, dtype=torch.float32, lora=(RANK, ALPHA), seed=0)
    trainer, config = Trainer(policy, progress=False), TrainConfig(learning_rate=1e-5)
    seconds, losses = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        losses.append(trainer.step(sequences, config)["loss/train"])
        seconds.append(time.perf_counter() - started)
    return seconds, losses[0]


def run_trl(model: Path, kind: str) -> tuple[list[float], float]:
    """TRL's own training loop; only its rollouts are given."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    prompts, completions, rewards = rows(kind)
    seconds: list[float] = []
    losses: list[float] = []

    def rollouts(asked, _trainer):
        assert len(asked) == ROWS
        return {
            "prompt_ids": prompts,
            "completion_ids": completions,
            "logprobs": [[0.0] * COMPLETION for _ in range(ROWS)],
        }

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.started)

    class Watched(GRPOTrainer):
        def training_step(self, *inputs, **options):
            loss = super().training_step(*inputs, **options)
            losses.append(float(loss))
            return loss

    config = GRPOConfig(
        output_dir=str(model.parent / "trl"), per_device_train_batch_size=ROWS,
        num_generations=ROWS, max_steps=STEPS, max_completion_length=COMPLETION, beta=0.0,
        loss_type="cispo", epsilon_high=4.0, scale_rewards="none", learning_rate=1e-5,
        lr_scheduler_type="constant", adam_beta2=0.99, max_grad_norm=1.0, report_to="none",
        save_strategy="no", logging_steps=1000, use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=lambda **_: rewards,
        rollout_func=rollouts,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a prompt"] * ROWS * STEPS}),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    return seconds, losses[0]


def measure(python: str, side: str, model: Path, kind: str) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [python, __file__, "--side", side, "--kind", kind, "--model", str(model)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(python: str, model: Path, kind: str, repeats: int) -> dict[str, float]:
    """Run both sides in turns; return the figures of one kind of rows."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for _ in range(repeats):
        for side, program in (("ours", sys.executable), ("trl", python)):
            found[side].append(measure(program, side, model, kind))
    ours, trl = found["ours"], found["trl"]
    figures = {
        "ours_tokens_per_s": max(f["tokens_per_s"] for f in ours),
        "trl_tokens_per_s": max(f["tokens_per_s"] for f in trl),
        "ours_peak_gb": statistics.median(f["peak_gb"] for f in ours),
        "trl_peak_gb": statistics.median(f["peak_gb"] for f in trl),
        "loss_difference": abs(ours[0]["loss"] - trl[0]["loss"]),
        "loss": ours[0]["loss"],
    }
    figures["tokens_per_s_ratio"] = figures["ours_tokens_per_s"] / figures["trl_tokens_per_s"]
    figures["memory_ratio"] = figures["ours_peak_gb"] / figures["trl_peak_gb"]
    return figures


def main() -> None:
    """Print a table, and one line of JSON as the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.side:
        run = run_ours if arguments.side == "ours" else run_trl
        seconds, loss = run(arguments.model, arguments.kind)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        best = ROWS * COMPLETION / min(seconds[1:])
        print(json.dumps({"tokens_per_s": best, "peak_gb": peak, "loss": loss}))
        return
    if not arguments.trl_python:
        print(f"TRL is not installed: {INSTALL}\nthen give --trl-python trl/bin/python")
        line = {"name": "vs_trl", "figures": {}, "targets": TARGETS, "held": None}
        print(json.dumps(line | {"skipped": "TRL is not installed"}))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch), arguments.layers)
        print(f"{'':9}{'ours tok/s':>12}{'TRL tok/s':>11}{'ratio':>7}", end="")
        print(f"{'ours GB':>9}{'TRL GB':>8}{'ratio':>7}{'loss difference':>17}")
        for kind in ("grouped", "apart"):
            model = Path(scratch) / "model"
            f = figures[kind] = compare(arguments.trl_python, model, kind, arguments.repeats)
            print(
                f"{kind:9}{f['ours_tokens_per_s']:12.1f}{f['trl_tokens_per_s']:11.1f}"
                f"{f['tokens_per_s_ratio']:7.2f}{f['ours_peak_gb']:9.2f}{f['trl_peak_gb']:8.2f}"
                f"{f['memory_ratio']:7.2f}{f['loss_difference']:17.1e}",
                flush=True,
            )
    held = (
        figures["grouped"]["tokens_per_s_ratio"] >= TARGETS["grouped_tokens_per_s_ratio_min"]
        and figures["apart"]["tokens_per_s_ratio"] >= TARGETS["apart_tokens_per_s_ratio_min"]
        and all(f["memory_ratio"] <= TARGETS["memory_ratio_max"] for f in figures.values())
        and all(f["loss_difference"] <= TARGETS["loss_difference_max"] for f in figures.values())
    )
    print(json.dumps({"name": "vs_trl", "figures": figures, "targets": TARGETS, "held": held}))


if __name__ == "__main__":
    main()
