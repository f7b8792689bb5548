"""Fourth stop: from groups of trajectories to a step's leaves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from art_core.data.choice import is_choice, tokens_of
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.errors import MetricError
from art_core.metrics.taxonomy import number, total
from art_core.rl.advantages import has_spread, population_std

RESERVED = ("reward", "exception_rate")


def summarize(groups: Sequence[TrajectoryGroup], split: str) -> dict[str, float]:
    """Average rewards and metrics of groups, under keys of the split; twice does no harm.

    On train `reward/mean`, `reward/<metric>`, `train/num_...`; elsewhere `<split>/reward`,
    `<split>/<metric>`. Raises MetricError for a reward, or a metric of a trajectory or group, that
    is not a number, and for a name that is reserved or taken.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    rewards = [number("reward", t.reward) for t in trajectories]
    failures = sum(len(group.failures) for group in groups)
    stds = [population_std(g.rewards) for g in groups if len(g) > 1]
    if split == "train":
        prefix, names = "reward/", ("reward/mean", "reward/std_dev", "reward/exception_rate")
    else:
        prefix, names = (
            f"{split}/",
            (f"{split}/reward", f"{split}/reward_std_dev", f"{split}/exception_rate"),
        )
    averages = _means((t.metrics for t in trajectories), prefix, names)
    averages |= _means((g.metrics for g in groups), f"{prefix}group_", averages)
    if trajectories:
        averages[names[0]] = _mean(rewards)
    if stds:
        averages[names[1]] = _mean(stds)
    if trajectories or failures:
        averages[names[2]] = failures / (len(trajectories) + failures)
    if split == "train" and groups:
        averages |= {
            "train/num_groups_submitted": float(len(groups)),
            "train/num_groups_trainable": float(sum(has_spread(g.rewards) for g in groups)),
            "train/num_trajectories": float(len(trajectories)),
        }
    return averages


def count(groups: Sequence[TrajectoryGroup], split: str) -> dict[str, float]:
    """Count what was run, and for how long; these add up, so they belong in one row only.

    Off train the counts stand under `<split>/data/`, so that they never join train's totals.
    """
    if not groups:
        return {}
    trajectories = [t for group in groups for t in group.trajectories]
    prefix = "" if split == "train" else f"{split}/"
    counts = {
        f"{prefix}data/step_num_scenarios": float(len(groups)),
        f"{prefix}data/step_num_trajectories": float(len(trajectories)),
        f"{prefix}data/step_num_groups_submitted": float(len(groups)),
    }
    seconds = elapsed(trajectories)
    if seconds:
        counts["time/step_actor_s" if split == "train" else "time/step_eval_s"] = seconds
    if split == "train":
        counts["data/step_num_groups_trainable"] = float(sum(has_spread(g.rewards) for g in groups))
        sampled = sum(_sampled_tokens(t) for t in trajectories)
        if sampled:
            counts["data/step_actor_tokens"] = float(sampled)
    return counts


def elapsed(trajectories: Iterable[Trajectory]) -> float:
    """Seconds during which at least one of the trajectories was running: overlaps count once."""
    spans = sorted((t.start_time, t.end_time) for t in trajectories if t.end_time is not None)
    total = 0.0
    reached: datetime | None = None
    for start, end in spans:
        begin = start if reached is None else max(start, reached)
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return total


def _sampled_tokens(trajectory: Trajectory) -> int:
    items = [item for history in trajectory.histories() for item in history.messages_and_choices]
    turns = [tokens_of(item) for item in items if is_choice(item)]
    return sum(len(turn.completion_ids) for turn in turns if turn)


def scenario_ids(groups: Sequence[TrajectoryGroup]) -> frozenset[str]:
    """Ids of the scenarios that groups ran: `metadata["scenario_id"]` of the group or its
    trajectories.
    """
    metadata = [group.metadata for group in groups] + [
        t.metadata for g in groups for t in g.trajectories
    ]
    return frozenset(str(m["scenario_id"]) for m in metadata if m.get("scenario_id") is not None)


def _means(
    samples: Iterable[dict[str, Any]], prefix: str, taken: Collection[str]
) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for metrics in samples:
        for name, value in metrics.items():
            key = f"{prefix}{name}"
            if name in RESERVED or key in taken:
                raise MetricError(
                    f"a trajectory's or group's metric may not be named {name!r}",
                    "It is the step's own name, or another metric has it already.",
                )
            collected.setdefault(key, []).append(number(name, value))
    return {key: _mean(values) for key, values in collected.items()}


def _mean(values: Sequence[float]) -> float:
    return total(values) / len(values)
