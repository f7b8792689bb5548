"""`art plan`: the memory that it takes to train a base model. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from art_core import Column, CommandSpec, Plugins, Record, Table
from art_core.rl.config import OPTIMIZERS

if TYPE_CHECKING:
    from art_local.plan import Plan

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
         "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
SIZE = re.compile(r"([\d.]+)\s*([kmgt]i?|)b?", re.IGNORECASE)
SHORTEST = 1024
HELP = """\
The model's config.json is enough: no weights are loaded. Counted are weights, adapter or trained
weights, the optimizer's moments, served weights, gradients, the activations of one sequence as long
as the context with and without activation checkpointing, logits, and the engine's keys and values.
With several GPUs it also counts what they send each other.

examples:
  art plan HuggingFaceTB/SmolLM2-135M-Instruct
  art plan Qwen/Qwen3-8B --context 16384 --memory 80GB
  art plan ./my-model/config.json --full --dtype bfloat16 --memory 141GB --json
  art plan ./my-model --full --optimizer muon
  art plan Qwen/Qwen3-32B --gpus 8 --context 32768 --memory 80GB
"""


def size(text: str) -> int:
    """Read a number of bytes, such as 80GB or 24GiB."""
    found = SIZE.fullmatch(text.strip())
    if found is None or found[1].count(".") > 1 or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give one like 80GB or 24GiB")
    return round(float(found[1]) * UNITS[found[2].lower()])


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a directory, its config.json, or a hub id")
    parser.add_argument(
        "--context", type=count, metavar="N", help="tokens of the longest sequence (%(default)s)",
        default=4096,
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=size, metavar="SIZE", help="memory to fit in, as 80GB (the device's)"
    )
    parser.add_argument("--rank", type=count, default=16, metavar="N", help="of LoRA (%(default)s)")
    parser.add_argument("--full", action="store_true", help="train all weights instead")
    parser.add_argument(
        "--dtype", metavar="NAME", help="bfloat16 or float32 (the device's; bfloat16 for --memory)"
    )
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers",
        help="what serves; vllm, in a process of its own, sleeps during a step (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--optimizer", choices=OPTIMIZERS, default=OPTIMIZERS[0], help="(%(default)s)"
    )
    parser.add_argument(
        "--sequences", type=count, default=8, metavar="N", help="sampled at once (%(default)s)"
    )
    parser.add_argument(
        "--gpus", type=count, default=1, metavar="N",
        help="GPUs that train together, each with a part of the weights (%(default)s)",
    )  # fmt: skip


def plan(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record | Table]:
    """Yield the plan: its sums, what takes memory, and what fits at which context."""
    from art_local.models.config_file import find_config
    from art_local.models.device_memory import device_memory
    from art_local.models.load import load_config
    from art_local.models.placement import placement
    from art_local.plan import Plan, PlanOptions
    from art_local.training.trainer import CHUNK_ROWS

    here = placement(None, arguments.dtype or ("bfloat16" if arguments.memory else None))
    memory = arguments.memory or device_memory(here.device).total
    options = PlanOptions(
        dtype=here.dtype,
        rank=None if arguments.full else arguments.rank,
        merged=arguments.engine != "vllm" and arguments.gpus == 1,
        gpus=arguments.gpus,
        sequences=arguments.sequences,
        optimizer=arguments.optimizer,
        chunk_rows=CHUNK_ROWS.get("cuda" if arguments.memory else here.device.type, 512),
    )
    made = Plan(load_config(find_config(arguments.model)), options)
    yield _sums(made, arguments, memory, here.dtype)
    yield _items(made, arguments.context)
    if arguments.gpus > 1:
        yield Record({}, [""])
        yield _traffic(made)
    yield Record({}, [""])
    yield _contexts(made, arguments.context, memory)


def _sums(made: Plan, arguments: argparse.Namespace, memory: int, dtype: Any) -> Record:
    name = str(dtype).removeprefix("torch.")
    method = "all weights" if arguments.full else f"LoRA of rank {arguments.rank}"
    largest = {
        f"largest_context{suffix}": made.largest_context(memory, checkpointing=on)
        for suffix, on in (("", False), ("_with_checkpointing", True))
    }
    without, with_it = largest.values()
    values = {
        "model": arguments.model,
        "architecture": made.architecture,
        "parameters": made.parameters,
        "trained_parameters": made.trained,
        "method": "full" if arguments.full else "lora",
        "rank": None if arguments.full else arguments.rank,
        "dtype": name,
        "engine": arguments.engine,
        "optimizer": arguments.optimizer,
        "gpus": arguments.gpus,
        "context": arguments.context,
        "memory_bytes": memory,
        **largest,
    }
    text = (
        f"{made.architecture}, {made.parameters / 1e9:,.3g} B parameters in {name}; {method}: "
        f"{made.trained / 1e6:,.4g} M trained\n"
        f"{_on(arguments.gpus)}longest sequence in {memory / 1e9:,.3g} GB: {_tokens(without)}; "
        f"with activation checkpointing {_tokens(with_it)}\n"
    )
    return Record(values, text.split("\n"))


def _items(made: Plan, context: int) -> Table:
    rows = []
    for item in made.items(context, checkpointing=False):
        row = {"item": item.name, "bytes": item.bytes, "when": item.when, "formula": item.formula}
        rows.append(row)
        if item.name == "activations":
            less = made.activations(context, checkpointing=True)
            how = f"with checkpointing: {context:,} tokens x {less / context:,.0f} bytes"
            rows.append({**row, "item": "or activations", "bytes": less, "formula": how})
    columns = (
        Column(key="item"),
        Column(key="bytes", heading="GB", form=_gigabytes, right=True),
        Column(key="when"),
        Column(key="formula", heading="how", wrap=True, rank=1),
    )
    return Table(name="items", rows=rows, columns=columns)


def _contexts(made: Plan, context: int, memory: int) -> Table:
    lengths, longest = {context}, made.longest_context or max(context, 1 << 15)
    length = SHORTEST
    while length <= longest:
        lengths.add(length)
        length *= 2
    rows = [_context(made, length, memory) for length in sorted({*lengths, longest})]
    columns = (
        Column(key="context", form=",", right=True),
        Column(key="activations_bytes", heading="activations", form=_gigabytes, right=True),
        Column(key="checkpointed_bytes", heading="checkpointed", form=_gigabytes, right=True),
        Column(key="key_value_bytes", heading="keys+values", form=_gigabytes, right=True),
        Column(key="peak_bytes", heading="peak GB", form=_gigabytes, right=True),
        Column(key="peak_checkpointed_bytes", heading="or", form=_gigabytes, right=True),
        Column(key="fits"),
    )
    return Table(name="contexts", rows=rows, columns=columns)


def _context(made: Plan, length: int, memory: int) -> dict[str, Any]:
    peaks = [made.peak(length, checkpointing=on) for on in (False, True)]
    fits = [made.fits(length, memory, checkpointing=on) for on in (False, True)]
    answer = "yes" if fits[0] else "with checkpointing" if fits[1] else "no"
    return {
        "context": length,
        "activations_bytes": made.activations(length, checkpointing=False),
        "checkpointed_bytes": made.activations(length, checkpointing=True),
        "key_value_bytes": made.key_values(length),
        "peak_bytes": peaks[0],
        "peak_checkpointed_bytes": peaks[1],
        "fits": answer,
    }


def _traffic(made: Plan) -> Table:
    rows = [
        {"received": item.name, "bytes": item.bytes, "formula": item.formula}
        for item in made.traffic()
    ]
    columns = (
        Column(key="received", heading="received in a pass"),
        Column(key="bytes", heading="GB", form=_gigabytes, right=True),
        Column(key="formula", heading="how", wrap=True, rank=1),
    )
    return Table(name="traffic", rows=rows, columns=columns)


def _on(gpus: int) -> str:
    return f"each of {gpus} GPUs: " if gpus > 1 else ""


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3f}" if count < 10**10 else f"{count / 1e9:,.1f}"


def _tokens(count: int) -> str:
    return f"{count:,} tokens" if count else "none"


COMMAND = CommandSpec(
    name="plan",
    summary="count the memory that it takes to train a base model",
    create=add_arguments,
    run=plan,
    help=HELP,
)
