"""One training step of art-local against plain transformers, on the same 32 x 256 batch of SmolLM2.

    python benchmarks/trainer_step.py [--model DIRECTORY_OR_NAME] [--repeats 2]

Both train LoRA (rank 8, all linear layers) with the same loss and optimizer. The plain step is what
one writes first: peft on an fp32 model, `model(ids).logits`, log-softmax, four rows at a time so
that it fits. In each row 128 prompt tokens come before 128 that bear loss; `ours, every token`
bears loss everywhere. Each variant runs in a process of its own; its figures are the best of
`--repeats` steps, and the peak resident memory of the process. On a machine with other work, CPU
seconds are better than wall seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

ROWS, LENGTH, PROMPT, MICRO_ROWS, RANK, ALPHA = 32, 256, 128, 4, 8, 16
OLD_LOGPROB = -3.0
VARIANTS = {
    "plain transformers, fp32": {"kind": "plain"},
    "ours, fp32": {"kind": "ours", "dtype": "float32"},
    "ours, chosen dtype": {"kind": "ours", "dtype": None},
    "ours, chosen dtype, every token": {"kind": "ours", "dtype": None, "prompt": 1},
}
TARGETS = {"tokens_per_s_ratio_min": 2.0, "memory_ratio_max": 0.55, "loss_difference_max": 1e-4}


def rows(model: Path) -> list[list[int]]:
    """Overlapping windows of this repository's licence: real text, the same everywhere."""
    from transformers import AutoTokenizer

    text = (Path(__file__).parent.parent / "LICENSE").read_text()
    ids = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    return [ids[at : at + LENGTH] for at in range(0, ROWS * 60, 60)]


def plain_step(model: Path, batch: list[list[int]]):
    """Full fp32 logits, with torch's and peft's defaults."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), lora)
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.99))

    def step(count: int) -> float:
        total = 0.0
        for at in range(0, count, MICRO_ROWS):
            ids = torch.tensor(batch[at : at + MICRO_ROWS])
            logits = policy(input_ids=ids).logits[:, :-1].float()
            logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][:, PROMPT - 1 :]
            advantages = torch.tensor([advantage(at + i) for i in range(len(ids))])[:, None]
            weights = (logprobs.detach() - OLD_LOGPROB).exp().clamp(0, 5)
            loss = -(weights * advantages * logprobs).sum() / (count * (LENGTH - PROMPT))
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def our_step(model: Path, batch: list[list[int]], dtype: str | None, prompt: int):
    """The trainer as the backend uses it, the merge of the new weights included."""
    from art_core.rl.config import TrainConfig
    from art_core.rl.sequences import TokenSequence
    from art_local.models.load import load_model
    from art_local.models.placement import placement
    from art_local.training.policy import Policy
    from art_local.training.trainer import Trainer

    place = placement("cpu", dtype)
    base = load_model(model, place, place.dtype)
    trainer = Trainer(Policy(base, dtype=place.dtype, lora=(RANK, ALPHA), seed=0), progress=False)
    sequences = [
        TokenSequence(
            token_ids=tuple(ids),
            trainable=tuple(at >= prompt for at in range(LENGTH)),
            logprobs=tuple(OLD_LOGPROB if at >= prompt else 0.0 for at in range(LENGTH)),
            advantage=advantage(index),
            weight=1 / (LENGTH - prompt),
        )
        for index, ids in enumerate(batch)
    ]
    config = TrainConfig(learning_rate=1e-5)
    return lambda count: trainer.step(sequences[:count], config)["loss/train"]


def advantage(row: int) -> float:
    """Half of the rows are better than their group, half are worse."""
    return 1.0 if row % 2 else -0.5


def measure(variant: str, model: Path, repeats: int) -> dict[str, float]:
    """Run one variant here. The loss is that of the first whole step, on fresh weights."""
    options = VARIANTS[variant]
    batch = rows(model)
    if options["kind"] == "plain":
        step = plain_step(model, batch)
    else:
        step = our_step(model, batch, options["dtype"], options.get("prompt", PROMPT))
    best, cpu, first = math.inf, math.inf, None
    for _ in range(repeats):
        started, cpu_started = time.perf_counter(), time.process_time()
        loss = step(ROWS)
        best = min(best, time.perf_counter() - started)
        cpu = min(cpu, time.process_time() - cpu_started)
        first = loss if first is None else first
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": best,
        "cpu_seconds": cpu,
        "tokens_per_s": ROWS * LENGTH / best,
        "peak_gb": peak / 1e9,
        "loss": first,
    }


def main() -> None:
    """Measure all variants, print a table, and one line of JSON as the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from art_local.torch_environment import set_torch_environment

    set_torch_environment()
    from art_local.models import resolve_base_model

    model = resolve_base_model(arguments.model)
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, model, arguments.repeats)))
        return
    figures = {}
    print(f"{'':34}{'seconds':>9}{'CPU s':>8}{'tokens/s':>10}{'peak GB':>9}{'loss':>11}")
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--model", str(model), "--variant", variant]
        command += ["--repeats", str(arguments.repeats)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = figures[variant] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{variant:34}{found['seconds']:9.2f}{found['cpu_seconds']:8.1f}"
            f"{found['tokens_per_s']:10.0f}{found['peak_gb']:9.2f}{found['loss']:11.6f}",
            flush=True,
        )
    plain, fp32, ours, _ = figures.values()
    compared = {
        "tokens_per_s_ratio": ours["tokens_per_s"] / plain["tokens_per_s"],
        "cpu_seconds_ratio": plain["cpu_seconds"] / ours["cpu_seconds"],
        "memory_ratio": ours["peak_gb"] / plain["peak_gb"],
        "loss_difference": abs(fp32["loss"] - plain["loss"]),
    }
    held = (
        compared["tokens_per_s_ratio"] >= TARGETS["tokens_per_s_ratio_min"]
        and compared["memory_ratio"] <= TARGETS["memory_ratio_max"]
        and compared["loss_difference"] <= TARGETS["loss_difference_max"]
    )
    line = {
        "name": "trainer_step",
        "figures": {**compared, **figures},
        "targets": TARGETS,
        "held": held,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
