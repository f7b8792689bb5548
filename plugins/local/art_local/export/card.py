"""The model card of an export: what the run started from, what it reached and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from art_core.base.errors import ConfigError

if TYPE_CHECKING:
    from art_local.export.checkpoint import TrainedModel

LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf", "ollama": "gguf"}
SHOWN = (
    ("train/reward", "mean reward of the training attempts"),
    ("val/reward", "mean reward of the validation attempts"),
)


def model_card(model: TrainedModel, form: str, files: Mapping[str, int]) -> str:
    """Return README.md: metadata for the model hub, rewards, costs and data of the run so far."""
    method = _method(model)
    lines = [
        "---",
        f"base_model: {_base(model)}",
        f"library_name: {LIBRARIES[form]}",
        "pipeline_tag: text-generation",
        "tags: [art-core, reinforcement-learning, agent]",
        "---",
        "",
        f"# {model.run.name}, step {model.step}",
        "",
        f"{_base(model)}, trained by reinforcement learning with art-core: {method}.",
        "",
        "| | first step | this step |",
        "|---|---|---|",
        *_rewards(model),
        "",
        f"Cost up to the newest row of the run: {_cost(model)}.",
        f"Data: {_data(model)}.",
        "",
        "| file | bytes |",
        "|---|---|",
        *(f"| {name} | {size:,} |" for name, size in files.items()),
        "",
    ]
    return "\n".join(lines)


def _base(model: TrainedModel) -> str:
    """Return the base model's name; of a directory, its last part."""
    return Path(model.base_name).name if Path(model.base_name).is_absolute() else model.base_name


def _method(model: TrainedModel) -> str:
    if model.is_whole:
        return "all weights"
    about = model.stored.manifest
    return f"LoRA of rank {about['lora_rank']} and alpha {about['lora_alpha']}"


def _rewards(model: TrainedModel) -> list[str]:
    rows = []
    for key, meaning in SHOWN:
        try:
            curve = {s: v for s, v in model.run.curve(key).items() if math.isfinite(v)}
        except ConfigError:
            continue
        past = {step: value for step, value in curve.items() if step <= model.step}
        if past:
            rows.append(f"| {meaning} | {past[min(past)]:.3f} | {past[max(past)]:.3f} |")
    return rows or ["| no reward was logged | | |"]


def _cost(model: TrainedModel) -> str:
    costs = model.run.costs().total
    parts = [f"{name} ${usd:.4f}" for name, usd in sorted(costs.items()) if name.count("/") == 0]
    if not costs:
        return "none was recorded"
    return f"${costs.get('all', 0.0):.4f} ({', '.join(p for p in parts if 'all ' not in p)})"


def _data(model: TrainedModel) -> str:
    steps = [step for step in model.run.steps("train") if step <= model.step]
    groups = [group for step in steps for group in model.run.groups(step)]
    attempts = sum(len(group.trajectories) for group in groups)
    return f"{attempts:,} attempts in {len(groups):,} groups of {len(steps):,} stored steps"
