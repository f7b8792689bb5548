"""One step of supervised fine-tuning of art-local against TRL's SFTTrainer: loss, gradient, tokens.

    python benchmarks/vs_trl_sft.py --trl-python PATH [--repeats 3] [--layers 4]

TRL lives in an environment of its own:

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl==1.16.0 peft

A random Qwen3 (hidden 512, vocabulary 151,936) trains the same LoRA (rank 16, alpha 32, all linear
layers, A and B random) in fp32 on both sides, without gradient checkpointing, eight conversations a
step. The last third of each is the assistant's and bears loss. `uneven` ones have 64 to 512
tokens, as data usually has; `even` ones have 256. TRL gets them as token ids with a completion
mask. Each side runs in a process of its own, in turns; its speed is the best of its steps, in
tokens of the conversations, padding not counted.
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

from vs_trl import ALPHA, INSTALL, RANK, STEPS, VOCABULARY, write_model

ROWS = 8
KINDS = ("uneven", "even")
TARGETS = {
    "tokens_per_s_ratio_min": 1.5,
    "loss_difference_max": 1e-5,
    "gradient_difference_max": 1e-5,
}


def conversations(kind: str) -> list[tuple[list[int], int]]:
    """Return the token ids of each conversation, and where its answer begins."""
    draw = random.Random(0)
    lengths = [draw.randrange(64, 513) if kind == "uneven" else 256 for _ in range(ROWS)]
    return [
        ([draw.randrange(1000, VOCABULARY - 1000) for _ in range(length)], length * 2 // 3)
        for length in lengths
    ]


def write_models(directory: Path, layers: int) -> None:
    """Write the random model, a tokenizer, which TRL asks for, and the adapter."""
    import torch

    write_model(directory, layers)
    policy = loaded_policy(directory / "model")
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.copy_(torch.randn(parameter.shape, generator=policy.generator) * 0.02)
    (directory / "adapter").mkdir()
    policy.save(directory / "adapter", str(directory / "model"))


def loaded_policy(model: Path):
    """Return the model with an adapter, as the backend trains it."""
    import torch

    from art_local.models.load import load_model
    from art_local.models.placement import placement
    from art_local.training.policy import Policy

    base = load_model(model, placement("cpu", "float32"), torch.float32)
    return Policy(base, dtype=torch.float32, lora=(RANK, ALPHA), seed=0)


def run_ours(model: Path, kind: str, gradients: Path) -> tuple[list[float], float]:
    """Return the seconds of each step and the loss of the first; write its gradients."""
    from safetensors.torch import save_file

    from art_core.rl.sequences import TokenSequence
    from art_core.rl.sft import sft_config
    from art_local.torch_environment import set_torch_environment
    from art_local.training.trainer import Trainer

    set_torch_environment()
    batch = [
        TokenSequence(
            token_ids=tuple(ids),
            trainable=tuple(place >= start for place in range(len(ids))),
            logprobs=(math.nan,) * len(ids),
        )
        for ids, start in conversations(kind)
    ]
    policy = loaded_policy(model)
    policy.load(policy.read(model.parent / "adapter"), model.parent / "adapter")
    trainer, config = Trainer(policy, progress=False), sft_config(learning_rate=1e-5)
    take = trainer.optimizer.step
    found: dict[str, object] = {}

    def step(*arguments, **options):
        if not found:
            found.update({n: p.grad.clone() for n, p in policy.trained().items()})
        return take(*arguments, **options)

    trainer.optimizer.step = step
    seconds, losses = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        losses.append(trainer.fit([batch], config)["loss/train"])
        seconds.append(time.perf_counter() - started)
    save_file(found, gradients)
    return seconds, losses[0]


def run_trl(model: Path, kind: str, gradients: Path) -> tuple[list[float], float]:
    """Return the same of TRL's own training loop."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = conversations(kind)
    seconds: list[float] = []
    losses: list[float] = []
    found: dict[str, object] = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.started)

        def on_pre_optimizer_step(self, *_, model=None, **__):
            if not found:
                named = model.named_parameters()
                found.update(
                    {
                        n.replace(".default.", "."): p.grad.clone()
                        for n, p in named
                        if p.requires_grad
                    }
                )

    class Watched(SFTTrainer):
        def training_step(self, *inputs, **options):
            loss = super().training_step(*inputs, **options)
            losses.append(float(loss))
            return loss

    config = SFTConfig(
        output_dir=str(model.parent / "trl"), per_device_train_batch_size=ROWS, max_steps=STEPS,
        max_length=None, packing=False, completion_only_loss=True, learning_rate=1e-5,
        lr_scheduler_type="constant", adam_beta2=0.99, max_grad_norm=0.0, report_to="none",
        save_strategy="no", logging_steps=1000, use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = Watched(
        model=PeftModel.from_pretrained(base, model.parent / "adapter", is_trainable=True),
        processing_class=AutoTokenizer.from_pretrained(model),
        args=config,
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [ids for ids, _ in rows],
                "completion_mask": [
                    [int(n >= start) for n in range(len(ids))] for ids, start in rows
                ],
            }
        ),
        callbacks=[Watch()],
    )
    trainer.train()
    save_file(found, gradients)
    return seconds, losses[0]


def measure(python: str, side: str, model: Path, kind: str) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [python, __file__, "--side", side, "--kind", kind, "--model", str(model)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def gradient_difference(directory: Path, kind: str) -> float:
    """Return the largest difference of an element of the two gradients."""
    from safetensors.torch import load_file

    ours = load_file(gradient_file(directory, "ours", kind))
    trl = load_file(gradient_file(directory, "trl", kind))
    assert ours.keys() == trl.keys()
    return max(float((ours[name] - trl[name]).abs().max()) for name in ours)


def gradient_file(directory: Path, side: str, kind: str) -> Path:
    """Return where a side writes its gradients."""
    return directory / f"{side}-{kind}.safetensors"


def compare(python: str, model: Path, kind: str, repeats: int) -> dict[str, float]:
    """Run both sides in turns; return the figures of one kind of conversations."""
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
        "gradient_difference": gradient_difference(model.parent, kind),
        "loss": ours[0]["loss"],
    }
    figures["tokens_per_s_ratio"] = figures["ours_tokens_per_s"] / figures["trl_tokens_per_s"]
    figures["memory_ratio"] = figures["ours_peak_gb"] / figures["trl_peak_gb"]
    return figures


def run_side(side: str, kind: str, model: Path) -> None:
    """Run one side and print its figures as the last line."""
    run = run_ours if side == "ours" else run_trl
    seconds, loss = run(model, kind, gradient_file(model.parent, side, kind))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    tokens = sum(len(ids) for ids, _ in conversations(kind))
    best = tokens / min(seconds[1:])
    print(json.dumps({"tokens_per_s": best, "peak_gb": peak, "loss": loss}))


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
        run_side(arguments.side, arguments.kind, arguments.model)
        return
    line = {"name": "vs_trl_sft", "figures": {}, "targets": TARGETS, "held": None}
    if not arguments.trl_python:
        print(f"TRL is not installed: {INSTALL}\nthen give --trl-python trl/bin/python")
        print(json.dumps(line | {"skipped": "TRL is not installed"}))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch), arguments.layers)
        print(f"{'':9}{'ours tok/s':>12}{'TRL tok/s':>11}{'ratio':>7}", end="")
        print(f"{'ours GB':>9}{'TRL GB':>8}{'loss diff.':>12}{'gradient diff.':>16}")
        for kind in KINDS:
            model = Path(scratch) / "model"
            f = figures[kind] = compare(arguments.trl_python, model, kind, arguments.repeats)
            print(
                f"{kind:9}{f['ours_tokens_per_s']:12.1f}{f['trl_tokens_per_s']:11.1f}"
                f"{f['tokens_per_s_ratio']:7.2f}{f['ours_peak_gb']:9.2f}{f['trl_peak_gb']:8.2f}"
                f"{f['loss_difference']:12.1e}{f['gradient_difference']:16.1e}",
                flush=True,
            )
    held = all(
        f["tokens_per_s_ratio"] >= TARGETS["tokens_per_s_ratio_min"]
        and f["loss_difference"] <= TARGETS["loss_difference_max"]
        and f["gradient_difference"] <= TARGETS["gradient_difference_max"]
        for f in figures.values()
    )
    print(json.dumps(line | {"figures": figures, "held": held}))


if __name__ == "__main__":
    main()
