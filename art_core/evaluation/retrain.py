"""`art.retrain`: training again from stored attempts, which costs no rollout and no judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.budgets.budget import Budget
from art_core.log.reader import LoggedRun
from art_core.log.rundir import checkpoint_folder, read_options
from art_core.model.backend import Backend
from art_core.model.trainable import TrainableModel
from art_core.rl.config import TrainConfig
from art_core.rl.stored_options import check_restored

SAMPLE_SIZE = "loss/effective_sample_size"
MIN_SAMPLE_SIZE = 0.5
COMPARED = (
    "loss/train", SAMPLE_SIZE, "loss/importance_ratio_p95", "loss/importance_ratio_p99",
    "loss/kl_k3", "loss/grad_norm",
)  # fmt: skip
"""Metrics of a step that are compared with those of the run it comes from."""


@attrs.frozen(kw_only=True)
class RetrainedStep:
    """A step that was trained again: its metrics, and those of the original step."""

    step: int
    metrics: dict[str, float]
    original: dict[str, float]


@attrs.frozen(kw_only=True)
class Retrained:
    """A run that was trained from the attempts of another one.

    `stopped` is the reason why it ended before the last step, None if it did not.
    """

    original: LoggedRun
    run: LoggedRun
    steps: tuple[RetrainedStep, ...]
    stopped: str | None = None


async def retrain(
    run: LoggedRun,
    steps: Sequence[int] | None = None,
    *,
    name: str,
    backend: Backend | str | None = None,
    min_sample_size: float = MIN_SAMPLE_SIZE,
    on_step: Callable[[RetrainedStep], None] | None = None,
    budget: Budget | None = None,
    **options: Any,
) -> Retrained:
    """Train steps of a run again, from its stored attempts, as a new run beside it.

    Each step takes the options that it was trained with, changed by `options`; equal options on an
    equal backend give equal losses. A first step above 1 begins at the checkpoint of the step
    before it.

    The attempts come from the original policy. `loss/effective_sample_size` is the share of them
    that an equally good sample from the new policy would need, (mean r)^2 / mean r^2 of the tokens'
    importance ratios r (Kong, 1992). Training stops after a step whose share is below
    `min_sample_size`: the attempts no longer represent the new policy, and later steps would mean
    little. A `budget` limits what the new run spends.

    Raises ConfigError for steps whose attempts or checkpoint are not stored, wrong options, or a
    name that is taken.
    """
    chosen = _checked_steps(run, steps)
    about = run.model()
    model = TrainableModel(
        name=name,
        project=about["project"],
        base_model=about["base_model"],
        base_path=run.path.parent.parent.parent,
        config={**about["config"], "retrained_from": run.name},
        sinks=[],
        budget=budget,
    )
    if model.run_dir.exists():
        raise ConfigError(
            f"there is a run named {name!r} already, in {model.run_dir}", "Choose another name."
        )
    trained_with = {step: {**read_options(run.path, step), **options} for step in chosen}
    for step, each in trained_with.items():
        check_restored(each, f"step {step} of {run.name}")
        TrainConfig.of(model.plugins.losses(), model.plugins.advantages(), **each)
    _copy_start(run, model.run_dir, chosen[0] - 1)
    done: list[RetrainedStep] = []
    stopped = None
    async with model:
        await model.register(backend)
        for step in chosen:
            done.append(await _again(model, run, step, trained_with[step]))
            if on_step:
                on_step(done[-1])
            stopped = _too_far(done[-1], min_sample_size)
            if stopped:
                break
    new = LoggedRun(model.run_dir, run.taxonomy)
    return Retrained(original=run, run=new, steps=tuple(done), stopped=stopped)


def _checked_steps(run: LoggedRun, steps: Sequence[int] | None) -> list[int]:
    stored = run.steps("train")
    chosen = sorted(set(steps)) if steps is not None else [s for s in stored if s > 0]
    missing = [step for step in chosen if step not in stored]
    known = f"{stored[0]} to {stored[-1]}" if stored else "none"
    if missing or not chosen:
        raise ConfigError(
            f"{run.name} has no attempts of step {', '.join(map(str, missing)) or '1'}; "
            f"stored: {known}"
        )
    if chosen != list(range(chosen[0], chosen[-1] + 1)) or chosen[0] < 1:
        raise ConfigError(f"steps must follow one another from 1 or later, got {chosen}")
    return chosen


def _copy_start(run: LoggedRun, directory: Path, step: int) -> None:
    """Put the checkpoint that the first step begins at into the new run's directory."""
    if not step:
        return
    checkpoints = run.checkpoints()
    if step not in checkpoints:
        raise ConfigError(
            f"{run.name} has no checkpoint of step {step}, at which step {step + 1} begins; it "
            f"has: {', '.join(map(str, checkpoints)) or 'none'}",
            "Begin at step 1, or at a step after one of these.",
        )
    shutil.copytree(checkpoints[step], checkpoint_folder(directory) / checkpoints[step].name)


async def _again(
    model: TrainableModel, run: LoggedRun, step: int, options: Mapping[str, Any]
) -> RetrainedStep:
    result = await model.train(run.groups(step), **options)
    curves = run.timeline(lambda key: key in COMPARED).curves()
    original = {key: curve[step] for key, curve in curves.items() if step in curve}
    return RetrainedStep(step=result.step, metrics=dict(result.metrics), original=original)


def _too_far(done: RetrainedStep, least: float) -> str | None:
    share = done.metrics.get(SAMPLE_SIZE)
    if share is None or share >= least:
        return None
    return (
        f"the effective sample size fell to {share:.0%} at step {done.step}, below {least:.0%}: "
        "the stored attempts no longer represent the new policy"
    )
