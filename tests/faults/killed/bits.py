"""What two runs are compared by, as bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from life import LAST
from safetensors.torch import load_file

FILES = {
    "weights": ("adapter_model",),
    "optimizer moments": ("optimizer", "optimizer_sft"),
    "random state": ("rng",),
}
KINDS = (*FILES, "data position", "metrics")
LEFT_OUT = ("seq", "attempt", "recorded_at", "time/", "throughput/", "data/cum/")
"""How fields of a row begin that are not compared: numbers of rows and processes, times, and totals
of data, which count a step twice that was trained twice.
"""
DURATIONS = ("duration", "seconds")


def of_run(directory: Path) -> dict[str, dict[str, bytes]]:
    """Return the bytes of each kind by name: the last checkpoint, the plan of fine-tuning, stored
    attempts, and the last row of each step and split.
    """
    run = directory / "p" / "models" / "m"
    checkpoint = run / "checkpoints" / f"{LAST:04d}"
    found = {kind: _tensors(checkpoint, files) for kind, files in FILES.items()}
    return {**found, "data position": _position(run), "metrics": _rows(run / "history.jsonl")}


def differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> int:
    """Return how many bits differ; all bits of what only one of them has."""
    return sum(
        _differing(one.get(name, b""), other.get(name, b"")) for name in one.keys() | other.keys()
    )


def _differing(one: bytes, other: bytes) -> int:
    shared = min(len(one), len(other))
    number = int.from_bytes(one[:shared]) ^ int.from_bytes(other[:shared])
    return number.bit_count() + 8 * abs(len(one) - len(other))


def _tensors(checkpoint: Path, files: tuple[str, ...]) -> dict[str, bytes]:
    return {
        f"{file} {name}": tensor.contiguous().numpy().tobytes()
        for file in files
        for name, tensor in load_file(checkpoint / f"{file}.safetensors").items()
    }


def _position(run: Path) -> dict[str, bytes]:
    found = {"plan": (run / "sft.json").read_bytes()}
    for file in sorted((run / "trajectories" / "train").glob("*.jsonl")):
        groups = [json.loads(line) for line in file.read_bytes().splitlines()]
        found[f"step {file.stem}"] = _said(groups)
    for file in sorted((run / "evaluations" / "val").glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_bytes().splitlines() if _whole(line)]
        for stored in (line["attempt"] for line in lines if "attempt" in line):
            place = f"evaluation {file.stem}, {stored['scenario']}, {stored['repeat']}"
            assert place not in found, f"{place} was stored twice"
            found[place] = _said([stored["group"]])
    return found


def _said(groups: Iterable[Mapping[str, Any]]) -> bytes:
    """Return what the trajectories of groups hold, with token ids and log-probs, and their rewards,
    without their times.
    """
    return repr(
        [
            (trajectory["reward"], trajectory["messages_and_choices"])
            for group in groups
            for trajectory in group["trajectories"]
        ]
    ).encode()


def _whole(line: bytes) -> bool:
    return line.endswith(b"}")


def _rows(log: Path) -> dict[str, bytes]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in log.read_bytes().splitlines():
        row = json.loads(line)
        rows[row["split"], row["step"]] = row
    return {
        f"{split} {step} {key}": _bytes(value)
        for (split, step), row in rows.items()
        for key, value in row.items()
        if not _is_left_out(key)
    }


def _is_left_out(key: str) -> bool:
    return key.startswith(LEFT_OUT) or any(word in key for word in DURATIONS)


def _bytes(value: Any) -> bytes:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return struct.pack("<d", value) if is_number else json.dumps(value, sort_keys=True).encode()
