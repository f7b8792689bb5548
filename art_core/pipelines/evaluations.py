"""Evaluations beside training, each at the weights of one step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

from art_core.evaluation.attempts import Rollout
from art_core.evaluation.evaluate import evaluate
from art_core.log.rows import read_rows
from art_core.model.trainable import TrainableModel
from art_core.pipelines.config import PipelineConfig
from art_core.pipelines.gauge import Gauge
from art_core.run.checkpoints import StoredSteps

SPLIT = "val"
EVALUATION_SLOTS = 32
"""Attempts of an evaluation at the same time where none of training run here."""


@attrs.define(eq=False)
class UsedSteps:
    """The steps whose weights are in use: their checkpoints stay."""

    _uses: Counter[int] = attrs.field(factory=Counter)

    @contextmanager
    def using(self, step: int) -> Iterator[None]:
        """Keep the checkpoint of a step in the block."""
        self._uses[step] += 1
        try:
            yield
        finally:
            self._uses[step] -= 1

    @contextmanager
    def kept_by(self, model: TrainableModel) -> Iterator[None]:
        """Have a model keep these checkpoints besides those that it keeps itself, in the block."""
        before = model.keep_checkpoints

        def keep(stored: StoredSteps) -> Collection[int]:
            return {*before(stored), *(+self._uses)}

        model.keep_checkpoints = keep
        try:
            yield
        finally:
            model.keep_checkpoints = before


@attrs.define(eq=False)
class Evaluations:
    """Evaluates a model every `eval_every` steps, while others are trained."""

    model: TrainableModel
    scenarios: Sequence[Any]
    rollout: Rollout
    config: PipelineConfig
    used: UsedSteps
    running: Gauge = attrs.field(factory=Gauge)
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set)

    def due(self, step: int) -> bool:
        """Return whether the weights of a step are to be evaluated."""
        return bool(self.scenarios) and step % self.config.eval_every == 0

    def due_at_end(self, step: int) -> bool:
        """Return whether the last weights of the pipeline are still to be evaluated."""
        return bool(self.scenarios) and not self.due(step)

    async def resume(self, step: int) -> None:
        """Begin the evaluation of the newest step that was due and is not in the log."""
        newest = step - step % self.config.eval_every
        stored = {0, step, *(c.step for c in await self.model.checkpoints())}
        if self.scenarios and newest in stored and not self._is_logged(newest):
            self.begin(newest)

    def begin(self, step: int) -> None:
        """Begin to evaluate the weights of a step."""
        self._tasks.add(asyncio.create_task(self._evaluated(step)))

    def check(self) -> None:
        """Raise the error of an evaluation that failed."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            task.result()

    async def finish(self) -> None:
        """Wait for those that run."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """End those that run. Their attempts are on disk: the next pipeline goes on with them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _evaluated(self, step: int) -> None:
        with self.used.using(step), self.running.one_more():
            await evaluate(
                self.model,
                self.scenarios,
                self.rollout,
                step=step,
                split=SPLIT,
                repeats=self.config.eval_repeats,
                max_concurrent=self.config.max_concurrent or EVALUATION_SLOTS,
                timeout=self.config.timeout,
                progress=None,
            )

    def _is_logged(self, step: int) -> bool:
        rows = (row for row, _ in read_rows(self.model.run.history.path))
        key = f"{SPLIT}/pass_at_1"
        return any((row.split, row.step) == (SPLIT, step) and key in row.metrics for row in rows)
