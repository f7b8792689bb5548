"""Bytes and seconds of a training step on 1, 8 and 64 GPUs, projected from what one device does.

    python benchmarks/scale.py [--share 0.49] [--write]

Measured here is one number: which share of the device's fastest matrix product a training pass of
LoRA reaches, forward and backward, whose multiplications are counted from the model's shape. The
projection multiplies a GPU's published peak by that share. Bytes are those of `art plan --gpus`,
which a test compares with real ranks; links have their published speeds. `--write` puts the tables
into docs/scale.md. `--share` leaves the measurement out.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
GPU, PEAK, MEMORY = "H100 SXM", 989e12, 80e9
"""NVIDIA's data sheet: bf16 without sparsity, FLOP/s; bytes."""
LINKS = {
    8: {"NVLink 4 (450 GB/s a direction)": 450e9},
    64: {
        "eight 400 Gb/s adapters a machine": 8 * 50e9,
        "one 100 Gb/s adapter a machine": 12.5e9,
    },
}
"""Bytes per second that a machine's GPUs receive of what all must have: each machine gets it once,
over all its adapters, and passes it on over NVLink.
"""
SEQUENCES, LENGTH = 64, 8192
RANK, CHECKPOINTED = 16, 1
TARGETS = {"share_min": 0.2}
COMMON = {"head_dim": 128, "num_key_value_heads": 8, "max_position_embeddings": 40_960}
SHAPES = {
    "8 B": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
            "intermediate_size": 12_288},
    "32 B": {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64,
             "intermediate_size": 25_600},
    "70 B": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
             "intermediate_size": 28_672},
}  # fmt: skip


def config_of(**sizes: int) -> Any:
    """A decoder of Qwen3's kind."""
    from transformers import Qwen3Config

    given = {"vocab_size": 151_936, "tie_word_embeddings": False, **COMMON, **sizes}
    return Qwen3Config(**given)


def flops_per_token(config: Any, parameters: int, length: int, passes: int) -> float:
    """Multiplications and additions of a token: each weight outside the embedding twice in a pass,
    and causal attention over half the sequence on average. A step has a forward pass, one backward
    pass on activations (LoRA's weights are frozen), and with checkpointing a second forward pass.
    """
    weights = parameters - config.vocab_size * config.hidden_size
    width = config.num_attention_heads * config.head_dim
    attention = 2 * config.num_hidden_layers * width * length
    return passes * (2 * weights + attention)


@attrs.frozen(kw_only=True)
class Projection:
    """A step on so many GPUs: bytes that each holds and receives, seconds, and what limits them."""

    model: str
    gpus: int
    link: str
    held: int
    peak: int
    passes: int
    received: int
    computing: float
    receiving: float

    @property
    def seconds(self) -> str:
        """The seconds of a step, from all sending hidden behind computing to none."""
        low, high = max(self.computing, self.receiving), self.computing + self.receiving
        return f"{low:,.1f}" if f"{low:,.1f}" == f"{high:,.1f}" else f"{low:,.1f} to {high:,.1f}"


def projections(share: float) -> Iterator[Projection]:
    """Project a step of 64 sequences of 8,192 tokens for each model, number of GPUs and link."""
    from art_local.plan import ALWAYS, Plan, PlanOptions
    from art_local.training.pass_size import USABLE
    from art_local.training.trainer import CHUNK_ROWS, PACKED_TOKENS

    options = PlanOptions(
        dtype=torch.bfloat16, rank=RANK, merged=False, chunk_rows=CHUNK_ROWS["cuda"]
    )
    for model, sizes in SHAPES.items():
        config = config_of(**sizes)
        counted = Plan(config, options)
        for gpus in (1, *LINKS):
            made = copy.copy(counted)
            made.options = attrs.evolve(options, gpus=gpus)
            items = made.items(LENGTH, checkpointing=True)
            peak = made.peak(LENGTH, checkpointing=True)
            own = math.ceil(SEQUENCES / gpus) * LENGTH
            passes = math.ceil(own / PACKED_TOKENS["cuda"])
            flops = flops_per_token(config, made.parameters, LENGTH, 2 + CHECKPOINTED)
            received = passes * sum(item.bytes for item in made.traffic()) if gpus > 1 else 0
            for link, speed in LINKS.get(gpus, {"": math.inf}).items():
                yield Projection(
                    model=model,
                    gpus=gpus,
                    link=link,
                    held=sum(item.bytes for item in items if item.when == ALWAYS),
                    peak=peak if peak <= USABLE * MEMORY else 0,
                    passes=passes,
                    received=received,
                    computing=own * flops / (PEAK * share),
                    receiving=received / speed,
                )


def table(found: list[Projection], share: float) -> str:
    """The tables of the page, as Markdown."""
    heads = ("model", "GPUs", "link", "held GB", "peak GB", "passes", "received GB",
             "computing s", "receiving s", "step s")  # fmt: skip
    stated = (
        f"A step of {SEQUENCES} sequences of {LENGTH:,} tokens, LoRA {RANK}, bf16, activation "
        f"checkpointing; {GPU}: {PEAK / 1e12:.0f} TFLOP/s, of which a pass reaches {share:.0%}."
    )
    lines = [stated, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for each in found:
        peak = f"{each.peak / 1e9:.1f}" if each.peak else "does not fit"
        lines.append(
            f"| {each.model} | {each.gpus} | {each.link or '-'} | {each.held / 1e9:.1f} | {peak} | "
            f"{each.passes} | {each.received / 1e9:,.0f} | {each.computing:,.1f} | "
            f"{each.receiving:,.1f} | {each.seconds if each.peak else '-'} |"
        )
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the tables into the page, between its markers."""
    marks = "<!-- scale -->\n", "<!-- end -->"
    page = PAGE.read_text()
    inside = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    PAGE.write_text(inside.sub(lambda _: f"{marks[0]}{text}\n{marks[1]}", page))


def best(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest time of some repeats, in seconds."""
    found = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - started)
    return found


def measured_share() -> dict[str, float]:
    """The share of the fastest matrix product that a training pass reaches, on this device."""
    from transformers import AutoModelForCausalLM

    from art_local.models.placement import placement
    from art_local.training.policy import Policy

    place = placement()
    sizes = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
             "intermediate_size": 3072, "vocab_size": 32_000}  # fmt: skip
    config, length = config_of(**sizes), 1024
    model = AutoModelForCausalLM.from_config(config, dtype=place.dtype).to(place.device)
    parameters = sum(p.numel() for p in model.parameters())
    policy = Policy(model, dtype=place.dtype, lora=(RANK, 2 * RANK), seed=0)
    ids_BS = torch.arange(length, device=place.device)[None] % 32_000
    rows_R = torch.arange(length - 1, device=place.device)

    def train() -> None:
        found_R, _ = policy.logprobs(ids_BS, rows_R, ids_BS[0, 1:], chunk_size=512)
        found_R.sum().backward()
        if place.device.type == "cuda":
            torch.cuda.synchronize()

    a, b = torch.randn(2, 4096, 4096, device=place.device, dtype=place.dtype).unbind()
    train()
    products, passes = [], []
    for _ in range(2):  # in turns
        products.append(best(lambda: (a @ b).sum().item()))
        passes.append(best(train))
    flops = length * flops_per_token(config, parameters, length, 2)
    reached, peak = flops / min(passes), 2 * 4096**3 / min(products)
    return {
        "pass_gflops": reached / 1e9,
        "product_gflops": peak / 1e9,
        "share": reached / peak,
    }


def main() -> None:
    """Print the tables, and one line of JSON as the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, help="of the peak, instead of measuring it")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    arguments = parser.parse_args()
    figures = {"share": arguments.share} if arguments.share else measured_share()
    share = round(figures["share"], 2)
    text = table(list(projections(share)), share)
    print(text)
    if arguments.write:
        write(text)
    held = figures["share"] >= TARGETS["share_min"]
    print(json.dumps({"name": "scale", "figures": figures, "targets": TARGETS, "held": held}))


if __name__ == "__main__":
    main()
