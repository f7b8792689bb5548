"""Files of a sharded adapter and its optimizer: each rank writes its parts, any number reads them.

torch.distributed.checkpoint writes them as safetensors (`HuggingFaceStorageWriter`): the place of a
part is in the file's header, so that there is no metadata file, which would be a pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from art_local.distributed.sharding import ShardedPolicy
from art_local.training.phases import OPTIMIZERS, PARTS

ADAPTER = "adapter"

States = Mapping[str, Mapping[str, Tensor]]
"""By phase, an optimizer's state as `Optimizer.state` returns it."""


def save_parts(policy: ShardedPolicy, states: States, directory: Path) -> None:
    """Write this rank's part of the adapter and the states; all ranks call it."""
    values: dict[str, Any] = {
        f"{ADAPTER}.{name}": policy.spread(name, p.detach()) for name, p in policy.local.items()
    }
    for phase, state in states.items():
        for key, value in state.items():
            kind, _, name = key.partition(".")
            values[f"{phase}.{key}"] = value if kind == "step" else policy.spread(name, value)
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    with _without_warnings():
        save(values, storage_writer=writer)


def load_parts(policy: ShardedPolicy, directory: Path) -> dict[str, dict[str, Tensor]]:
    """Return this rank's part of the states in a directory, whoever wrote them."""
    if not any(directory.glob(PARTS)):
        return {
            phase: {key: _part(policy, key, value) for key, value in state.items()}
            for phase, state in whole_states(directory).items()
        }
    reader = HuggingFaceStorageReader(str(directory))
    values: dict[str, Any] = {}
    for key, size in _sizes(reader).items():
        kind, _, name = key.partition(".")[2].partition(".")
        values[key] = torch.zeros(size)
        if kind != "step":
            values[key] = policy.spread(name, torch.zeros_like(policy.local[name].detach()))
    with _without_warnings():
        load(values, storage_reader=reader)
    local = {k: v.to_local() if hasattr(v, "to_local") else v for k, v in values.items()}
    return _by_phase(local)


def whole_states(directory: Path) -> dict[str, dict[str, Tensor]]:
    """Return the whole states in a directory, whoever wrote them; empty where there are none."""
    if not any(directory.glob(PARTS)):
        files = {phase: directory / name for phase, name in OPTIMIZERS.items()}
        return {phase: load_file(file) for phase, file in files.items() if file.exists()}
    reader = HuggingFaceStorageReader(str(directory))
    values: dict[str, Any] = {key: torch.zeros(size) for key, size in _sizes(reader).items()}
    with _without_warnings():
        load(values, storage_reader=reader)
    return _by_phase(values)


def _sizes(reader: HuggingFaceStorageReader) -> dict[str, torch.Size]:
    """Return the shapes of a directory's states by key."""
    found = reader.read_metadata().state_dict_metadata
    phases = tuple(f"{phase}." for phase in OPTIMIZERS)
    return {key: entry.size for key, entry in found.items() if key.startswith(phases)}  # type: ignore[union-attr]


def _by_phase(values: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in values.items():
        phase, _, rest = key.partition(".")
        found.setdefault(phase, {})[rest] = value
    return found


def _part(policy: ShardedPolicy, key: str, value: Tensor) -> Tensor:
    kind, _, name = key.partition(".")
    return value if kind == "step" else policy.part(name, value)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Let torch not warn that one process reads without a group, or that its own code is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
