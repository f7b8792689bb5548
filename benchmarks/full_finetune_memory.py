"""Memory of full fine-tuning: bytes for each parameter, at the peak of a step and between steps.

    python benchmarks/full_finetune_memory.py [--layers 12]

A random Qwen3 (hidden 768, vocabulary 8,192, 98 M parameters with 12 layers) takes two steps over
eight short sequences in a process of its own, once in float32 and once in bfloat16. Activations are
few, so the process's memory is that of weights, gradients, moments, served weights and copies. The
floor is what AdamW needs in fp32: a weight, a gradient and two moments, 16 bytes, and the weights
that are served until the new ones are.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

DTYPES = ("float32", "bfloat16")
SERVED = {"float32": 8, "bfloat16": 4}
"""Bytes of the served weights: those of the step before, and the new ones."""
TARGETS = {"peak_over_floor_max": 1.1}


def resident() -> int:
    """Return this process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The highest resident memory while the block runs."""

    def __enter__(self) -> Self:
        self.bytes, self._ended = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.bytes = max(self.bytes, resident())


def sequences(vocabulary: int):
    """Return eight sequences of 16 random tokens."""
    import torch

    from art_core.rl.sequences import TokenSequence

    generator = torch.Generator().manual_seed(0)
    return [
        TokenSequence(
            token_ids=tuple(torch.randint(0, vocabulary, (16,), generator=generator).tolist()),
            trainable=(False,) * 8 + (True,) * 8,
            logprobs=(0.0,) * 8 + (-9.0,) * 8,
            advantage=1.0 if place % 2 else -1.0,
            weight=1 / 8,
        )
        for place in range(8)
    ]


def measure(dtype: str, layers: int) -> dict[str, float]:
    """Take two steps here."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from art_core.rl.config import TrainConfig
    from art_local.training.policy import Policy
    from art_local.training.trainer import Trainer

    def made(layers: int):
        config = Qwen3Config(
            vocab_size=8192, hidden_size=768, intermediate_size=2304, num_hidden_layers=layers,
            num_attention_heads=12, num_key_value_heads=4, head_dim=64, max_position_embeddings=512,
            tie_word_embeddings=True,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        policy = Policy(model, dtype=getattr(torch, dtype), lora=None, seed=0)
        return model, Trainer(policy, progress=False)

    torch.set_num_threads(1)
    train = TrainConfig(packing=False)
    model, trainer = made(1)
    trainer.step(sequences(model.config.vocab_size), train)  # loads what libraries load once
    del model, trainer
    gc.collect()
    before = resident()
    model, trainer = made(layers)
    parameters = sum(p.numel() for p in model.parameters())
    figures: dict[str, float] = {"parameters": parameters, "loaded": resident() - before}
    for step in ("first", "second"):
        started = time.perf_counter()
        with Peak() as peak:
            trainer.step(sequences(model.config.vocab_size), train)
        figures["seconds"] = time.perf_counter() - started
        figures[f"{step}_peak"] = peak.bytes - before
        figures[f"after_{step}"] = resident() - before
    whole = ("parameters", "seconds")
    return {n: value if n in whole else value / parameters for n, value in figures.items()}


def main() -> None:
    """Print a table, and one line of JSON as the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dtype", choices=DTYPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dtype:
        print(json.dumps(measure(arguments.dtype, arguments.layers)))
        return
    # freed memory goes back to the system, so that what is resident is what is held
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    figures: dict[str, dict[str, float]] = {}
    columns = ("loaded", "first_peak", "after_first", "second_peak", "after_second")
    print(f"{'bytes a parameter':18}" + "".join(f"{name:>13}" for name in columns))
    for dtype in DTYPES:
        command = [sys.executable, __file__, "--dtype", dtype, "--layers", str(arguments.layers)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        found = figures[dtype] = json.loads(done.stdout.splitlines()[-1])
        found["floor"] = 16 + SERVED[dtype]
        found["peak_over_floor"] = found["second_peak"] / found["floor"]
        print(f"{dtype:18}" + "".join(f"{found[name]:13.1f}" for name in columns), flush=True)
    worst = max(found["peak_over_floor"] for found in figures.values())
    held = worst <= TARGETS["peak_over_floor_max"]
    line = {"name": "full_finetune_memory", "figures": figures, "targets": TARGETS, "held": held}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
