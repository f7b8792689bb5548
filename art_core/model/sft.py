"""Supervised fine-tuning of a model: the examples, their batches, and one row per step."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs

from art_core.backends import TrainResult
from art_core.base.errors import ConfigError, unknown
from art_core.base.files import json_line
from art_core.data.chat_file import Problem, read_examples, refuse
from art_core.data.store import group_dict
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.model.sft_plan import DIGEST, SFTPlan, SFTPlans, chosen_plan
from art_core.model.stopping import check_stop
from art_core.rl.config import check_options, count, switch, whole
from art_core.rl.schedules import RateOrSchedule, rate_at
from art_core.rl.sft import SFT_OPTIONS, ExampleSize, sft_config

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel

log = logging.getLogger("art_core")
MAX_AUTO_BATCH, AUTO_BATCHES = 32, 10
"""`batch_size="auto"`: as many examples that an epoch has ten batches, and at most 32."""
CHECKPOINTS = 20
"""Checkpoints of one `train_sft` by default, at equal distances."""

Data = str | os.PathLike[str] | Iterable[Trajectory] | Iterable[TrajectoryGroup]


class SupervisedBackend(Protocol):
    """A backend that has supervised fine-tuning, which not every service has."""

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Run one training step, with an optimizer step for each batch, and serve the new weights.

        The loss is the mean of -log p over the assistant's tokens of a batch, and the optimizer's
        state is not that of `train`. Options are those of `art_core.rl.sft.sft_config`.
        """


class ChecksExamples(Protocol):
    """A supervised backend that has the model's tokenizer at hand."""

    async def check_sft(
        self, model: TrainableModel, examples: Sequence[Trajectory]
    ) -> Sequence[ExampleSize]:
        """Return the size of each example, or why it can't be trained, before a step begins."""


@attrs.frozen(kw_only=True)
class SFTOptions:
    """The options of `TrainableModel.train_sft` that choose batches; see there."""

    batch_size: int | Literal["auto"] = "auto"
    epochs: int = 1
    batches_per_step: int = 1
    checkpoint_every: int | None = None
    shuffle: bool = True
    seed: int = 0
    skip_invalid: bool = False
    resume: bool = True

    def __attrs_post_init__(self) -> None:
        if self.batch_size != "auto":
            check_options(count, batch_size=self.batch_size)
        check_options(count, epochs=self.epochs, batches_per_step=self.batches_per_step)
        if self.checkpoint_every is not None:
            check_options(count, checkpoint_every=self.checkpoint_every)
        check_options(whole, seed=self.seed)
        check_options(
            switch, shuffle=self.shuffle, skip_invalid=self.skip_invalid, resume=self.resume
        )

    def plan(self, start: int, examples: Sequence[Trajectory]) -> SFTPlan:
        """Return the plan that begins at a step."""
        automatic = max(1, min(MAX_AUTO_BATCH, len(examples) // AUTO_BATCHES))
        return SFTPlan(
            start=start,
            digests="".join(map(_digest, examples)),
            batch_size=automatic if self.batch_size == "auto" else self.batch_size,
            epochs=self.epochs,
            batches_per_step=self.batches_per_step,
            shuffle=self.shuffle,
            seed=self.seed,
        )


def _digest(example: Trajectory) -> str:
    stored = group_dict(TrajectoryGroup([example]), tokens=False)["trajectories"][0]
    parts = ("messages_and_choices", "tools", "additional_histories")
    return hashlib.sha256(json_line({name: stored[name] for name in parts})).hexdigest()[:DIGEST]


def examples_of(data: Data, *, skip_invalid: bool) -> list[Trajectory]:
    """Return the examples of a file, of trajectories, or of groups; ConfigError for others."""
    if isinstance(data, str | os.PathLike):
        return read_examples(Path(data), skip_invalid=skip_invalid)
    examples: list[Trajectory] = []
    for item in data:
        examples += item if isinstance(item, TrajectoryGroup) else [item]
    wrong = next((item for item in examples if not isinstance(item, Trajectory)), None)
    if wrong is not None or not examples:
        found = type(wrong).__name__ if wrong is not None else "none"
        raise ConfigError(
            f"train_sft takes trajectories, got {found}",
            "Give trajectories, groups, or the path of a JSON-lines file.",
        )
    return examples


def supervised(backend: Any) -> SupervisedBackend:
    """Return a backend that has supervised fine-tuning; ConfigError for another one."""
    if getattr(backend, "train_sft", None) is not None:
        found: SupervisedBackend = backend
        return found
    raise ConfigError(
        f"{type(backend).__name__} has no supervised fine-tuning",
        "Train with the backend local, unsloth, tinker, or an `art serve`.",
    )


async def trainable_examples(
    backend: Any, model: TrainableModel, examples: list[Trajectory], *, skip_invalid: bool
) -> list[Trajectory]:
    """Return the examples that the backend can train. ConfigError names all others and their
    reasons, unless `skip_invalid` leaves them out.
    """
    checks: ChecksExamples | None = backend if getattr(backend, "check_sft", None) else None
    if checks is None:
        return examples
    sizes = await checks.check_sft(model, examples)
    found = list(zip(examples, sizes, strict=True))
    problems: list[Problem] = [
        (example.metadata.get("line", place), size.problem)
        for place, (example, size) in enumerate(found, start=1)
        if size.problem
    ]
    good = [example for example, size in found if not size.problem]
    refuse(problems, "the examples", skip_invalid=skip_invalid, known=len(good))
    return good


@attrs.frozen(kw_only=True, eq=False)
class SFTRun:
    """One `train_sft` under way: its examples, its plan, and the options of each step."""

    model: TrainableModel
    backend: SupervisedBackend
    examples: Sequence[Trajectory]
    plan: SFTPlan
    rate: Callable[[int], float]
    checkpoint_every: int
    options: Mapping[str, Any]

    async def steps(self, step: int) -> TrainResult:
        """Train the steps after `step` and log a row for each; return the last result."""
        result = TrainResult(step=step)
        for batches, last in self._batches(step):
            done = result.step - self.plan.start + 1
            saves = {"save_checkpoint": last or done % self.checkpoint_every == 0}
            saves |= await check_stop(self.model, self.model.run.info.stop)
            budget = self.model.metrics_builder().budget
            if budget is not None:
                saves = budget.begin_step(saves)
            result = await self.backend.train_sft(
                self.model,
                [[self.examples[place] for place in places] for places in batches.values()],
                learning_rate=self.rate(next(iter(batches))),
                **{**self.options, **saves},
            )
            passes = (max(batches) + 1) / self.plan.batches_per_epoch
            self.model.run.current().record(
                "train",
                result.step,
                metrics={**result.metrics, "data/sft_epochs": passes},
                trained=True,
            )
            if result.checkpoint is not None:
                await self.model.delete_unkept_checkpoints()
        return result

    def _batches(self, step: int) -> Iterator[tuple[dict[int, list[int]], bool]]:
        """Yield the batches of each step by number, and whether it is the last step."""
        orders: dict[int, list[int]] = {}
        for at in range(step, self.plan.end):
            numbers = self.plan.numbers(at)
            yield {n: self.plan.places(n, orders) for n in numbers}, at + 1 == self.plan.end


async def train_sft(
    model: TrainableModel,
    backend: Any,
    data: Data,
    used: set[int],
    learning_rate: RateOrSchedule,
    options: Mapping[str, Any],
) -> TrainResult:
    """Train a model on conversations (see `TrainableModel.train_sft`)."""
    names = [field.name for field in attrs.fields(SFTOptions)]
    known = [*names, *(name for name in SFT_OPTIONS if name != "save_checkpoint")]
    for name in options:
        if name not in known:
            raise ConfigError(unknown("train_sft option", name, known))
    chosen = SFTOptions(**{name: options[name] for name in names if name in options})
    of_step = {name: value for name, value in options.items() if name not in names}
    sft_config(**of_step)
    supervised_backend = supervised(backend)
    examples = examples_of(data, skip_invalid=chosen.skip_invalid)
    examples = await trainable_examples(backend, model, examples, skip_invalid=chosen.skip_invalid)
    step = await backend.step(model)
    new = chosen.plan(step, examples)
    rate = partial(rate_at, learning_rate, total_steps=new.batches)
    rate(0)
    plans = SFTPlans(model.run.info.run_dir)
    plan, complete = chosen_plan(plans, new, used, resume=chosen.resume)
    used.add(plan.start)
    if complete:
        log.warning(
            "these %d examples were trained in steps %d to %d; train_sft(..., resume=False) trains "
            "them again",
            *(plan.examples, plan.start + 1, plan.end),
        )
        return TrainResult(step=step)
    if step > plan.start:
        log.info("train_sft goes on after step %d of %d", step - plan.start, plan.steps)
    every = chosen.checkpoint_every or max(1, plan.steps // CHECKPOINTS)
    run = SFTRun(
        model=model,
        backend=supervised_backend,
        examples=examples,
        plan=plan,
        rate=rate,
        checkpoint_every=every,
        options=of_step,
    )
    return await run.steps(step)
