"""Packed rows against rows: how much faster a training pass is when a group's prompt stands once.

    python benchmarks/packing.py [--model DIRECTORY_OR_NAME] [--repeats 2] [--dtype bfloat16]

For each (prompt, completion, group) one forward and backward pass of LoRA (rank 8, all linear
layers) over one group, as the trainer cuts it into micro-batches; rows and packs take turns, and
the speed-up is that of the best turns, and of CPU seconds, which are better on a machine with other
work. The ideal is the ratio of tokens: what attention and the
output head cost does not shrink with it. Parity is taken in fp32 on a random model of the same
shape, over log-probs and gradients; a mask that shows other sequences must be seen there.
"""

from __future__ import annotations

import argparse
import json
import time

import attrs
import torch

CASES = ((256, 64, 8), (1024, 64, 8), (1024, 256, 8))
PARITY_CASE = (100, 20, 4)
RANK, ALPHA = 8, 16
TARGETS = {"share_of_ideal_min": 0.7, "parity_max": 1e-5, "wrong_mask_min": 1e-2}


def group(prompt: int, completion: int, size: int, vocabulary: int):
    """One group of random tokens; each completion bears loss."""
    from art_core.rl.sequences import TokenSequence

    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=generator).tolist()

    shared = draw(prompt)
    return [
        TokenSequence(
            token_ids=tuple(shared + draw(completion)),
            trainable=(False,) * prompt + (True,) * completion,
            logprobs=(0.0,) * prompt + (-3.0,) * completion,
            advantage=1.0 if place % 2 else -1.0,
            weight=1 / completion,
        )
        for place in range(size)
    ]


def forward_backward(policy, batches, chunk_size: int = 256):
    """Run the passes; return log-probs [N], sequence by sequence."""
    found = []
    for batch in batches:
        logprobs_R, _ = policy.logprobs(
            batch.ids_BS, batch.rows_R, batch.targets_R, chunk_size=chunk_size, layout=batch.layout
        )
        (-logprobs_R * batch.advantages_R * batch.weights_R).sum().backward()
        found.append((batch.sequences_R, logprobs_R.detach()))
    owners_N, logprobs_N = (torch.cat(part) for part in zip(*found, strict=True))
    return logprobs_N[owners_N.argsort(stable=True)]


def cut(sequences, kind: str):
    """Return the micro-batches that the trainer makes by default."""
    from art_local.training.batches import micro_batches
    from art_local.training.packing import packed_batches
    from art_local.training.trainer import MICRO_BATCH_TOKENS, PACKED_TOKENS

    joined = MICRO_BATCH_TOKENS["cpu"]
    if kind == "rows":
        return list(micro_batches(sequences, joined))
    return list(packed_batches(sequences, PACKED_TOKENS["cpu"], joined=joined))


def speed(policy, case: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Time rows and packs in turns."""
    sequences = group(*case, policy.base.config.vocab_size)
    batches = {kind: cut(sequences, kind) for kind in ("rows", "packed")}
    tokens = {kind: sum(b.ids_BS.numel() for b in made) for kind, made in batches.items()}
    seconds: dict[str, list[float]] = {"rows": [], "packed": []}
    cpu: dict[str, list[float]] = {"rows": [], "packed": []}
    forward_backward(policy, batches["packed"])
    for _ in range(repeats):
        for kind, made in batches.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            forward_backward(policy, made)
            seconds[kind].append(time.perf_counter() - started)
            cpu[kind].append(time.process_time() - cpu_started)
    speedup = min(seconds["rows"]) / min(seconds["packed"])
    ideal = tokens["rows"] / tokens["packed"]
    return {
        "tokens_rows": tokens["rows"],
        "tokens_packed": tokens["packed"],
        "seconds_rows": min(seconds["rows"]),
        "seconds_packed": min(seconds["packed"]),
        "speedup": speedup,
        "speedup_cpu_seconds": min(cpu["rows"]) / min(cpu["packed"]),
        "ideal": ideal,
        "share_of_ideal": speedup / ideal,
    }


def parity(config) -> dict[str, float]:
    """Return the largest difference of log-probs and of gradients (relative to the largest
    gradient), right and with a mask that shows other sequences.
    """
    from transformers import AutoModelForCausalLM

    from art_local.training.layout import Shape, layout_of
    from art_local.training.policy import Policy

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    policy = Policy(model, dtype=torch.float32, lora=(RANK, ALPHA), seed=0)
    with torch.no_grad():
        for parameter in policy.trained().values():
            parameter.normal_(std=0.02)
    policy.refresh()
    sequences = group(*PARITY_CASE, config.vocab_size)

    def run(batches):
        policy.model.zero_grad()
        logprobs_N = forward_backward(policy, batches)
        return logprobs_N, torch.cat([p.grad.flatten() for p in policy.trained().values()])

    packs = cut(sequences, "packed")
    wrong = [
        attrs.evolve(b, layout=layout_of([Shape(prefix=0, segments=(b.ids_BS.numel(),))]))
        for b in packs
    ]
    rows = run(cut(sequences, "rows"))
    figures = {}
    for name, batches in (("parity", packs), ("wrong_mask", wrong)):
        logprobs_N, gradient = run(batches)
        figures[f"{name}_logprobs"] = float((logprobs_N - rows[0]).abs().max())
        largest = float(rows[1].abs().max())
        figures[f"{name}_gradients"] = float((gradient - rows[1]).abs().max()) / largest
    return figures


def main() -> None:
    """Print a table, and one line of JSON as the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", help="bfloat16 or float32; by default what suits the machine")
    arguments = parser.parse_args()

    from art_local.torch_environment import set_torch_environment

    set_torch_environment()
    from art_local.models import resolve_base_model
    from art_local.models.load import load_model
    from art_local.models.placement import placement
    from art_local.training.policy import Policy

    place = placement("cpu", arguments.dtype)
    model = load_model(resolve_base_model(arguments.model), place, place.dtype)
    figures: dict[str, object] = {"device": str(place)}
    figures.update(parity(model.config))
    policy = Policy(model, dtype=place.dtype, lora=(RANK, ALPHA), seed=0)
    print(f"{'prompt, completion, group':27}{'rows s':>9}{'packed s':>10}{'speed-up':>10}", end="")
    print(f"{'in CPU s':>10}{'ideal':>8}{'share':>7}")
    shares = []
    for case in CASES:
        found = figures["x".join(map(str, case))] = speed(policy, case, arguments.repeats)
        shares.append(found["share_of_ideal"])
        print(
            f"{case!s:27}{found['seconds_rows']:9.2f}{found['seconds_packed']:10.2f}"
            f"{found['speedup']:10.2f}"
            f"{found['speedup_cpu_seconds']:10.2f}{found['ideal']:8.2f}{found['share_of_ideal']:7.0%}",
            flush=True,
        )
    for name in ("parity", "wrong_mask"):
        print(
            f"{name}: log-probs {figures[f'{name}_logprobs']:.1e}, "
            f"gradients {figures[f'{name}_gradients']:.1e}"
        )
    held = (
        min(shares) >= TARGETS["share_of_ideal_min"]
        and max(figures["parity_logprobs"], figures["parity_gradients"]) <= TARGETS["parity_max"]
        and min(figures["wrong_mask_logprobs"], figures["wrong_mask_gradients"])
        >= TARGETS["wrong_mask_min"]
    )
    print(json.dumps({"name": "packing", "figures": figures, "targets": TARGETS, "held": held}))


if __name__ == "__main__":
    main()
