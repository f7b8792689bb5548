"""The groups of a training step, out of a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from art_core.base.numbers import has_spread
from art_core.costs.pending import settle
from art_core.data.gather import AfterEach, judged
from art_core.data.trajectory import TrajectoryGroup, is_choice, tokens_of
from art_core.model.trainable import TrainableModel
from art_core.pipelines.config import PipelineConfig
from art_core.queue.queue import AttemptQueue
from art_core.rl.config import TrainConfig

SCENARIO = "queue_group"
"""The key of a group's metadata that groups of the same attempts share."""


@attrs.frozen(kw_only=True)
class StepGroups:
    """The groups of a step: those of so many `scenarios`, of which `flat` have no spread. `stale`
    groups were passed over. Without any, none will come.
    """

    groups: tuple[TrajectoryGroup, ...] = ()
    cursor: int = 0
    scenarios: int = 0
    flat: int = 0
    stale: int = 0


@attrs.define(eq=False)
class Batches:
    """Takes groups from a queue, for one step after the other. `after_each` judges them."""

    queue: AttemptQueue
    model: TrainableModel
    config: PipelineConfig
    after_each: AfterEach | None
    refills: bool

    @classmethod
    def of(
        cls,
        queue: AttemptQueue,
        model: TrainableModel,
        config: PipelineConfig,
        after_each: AfterEach | None,
        training: TrainConfig,
    ) -> Batches:
        """Take groups for a training whose options decide what teaches."""
        compares = training.loss.uses_rewards and training.loss.distill_coef == 0
        own = training.advantage_fn is None and training.reward_weights is None
        relative = training.advantage_baseline not in ("value", "scenario_mean")
        refills = config.zero_variance == "refill" and compares and own and relative
        return cls(queue, model, config, after_each, refills)

    async def take(self, step: int) -> StepGroups:
        """Wait for the groups that are trained next, on weights of a step."""
        taken = StepGroups()
        missing = self.config.min_batch_size
        while missing > 0 and taken.scenarios < self.config.most:
            room = self.config.most - taken.scenarios
            batch = await self.queue.take(
                min(missing, room),
                room,
                step=step,
                max_steps_off_policy=self.config.max_steps_off_policy,
                stale="drop" if self.config.stale == "drop" else "put back",
            )
            settle(batch.groups, self.model.metrics_builder("train"))
            groups = await self._judged(batch.groups)
            scenarios = len(batch.off_policy)
            taken = StepGroups(
                groups=(*taken.groups, *groups),
                cursor=batch.cursor,
                scenarios=taken.scenarios + scenarios,
                flat=taken.flat + scenarios - _with_spread(groups),
                stale=taken.stale + batch.stale,
            )
            if not batch.groups or batch.finished:
                break
            missing = self.config.min_batch_size - taken.scenarios
            if self.refills:
                missing += taken.flat
        return taken

    async def _judged(self, groups: Sequence[TrajectoryGroup]) -> Sequence[TrajectoryGroup]:
        if self.after_each is None:
            return groups
        kept = await asyncio.gather(*(judged(group, self.after_each) for group in groups))
        return [group for group in kept if group is not None]


def _with_spread(groups: Sequence[TrajectoryGroup]) -> int:
    """Return at how many scenarios the rewards of a group differ."""
    return len({g.metadata.get(SCENARIO, g.id) for g in groups if has_spread(g.rewards)})


def off_policy(groups: Sequence[TrajectoryGroup], step: int) -> dict[str, float]:
    """Return by how many steps the weights behind the turns are older than those of a step, and the
    share of attempts whose turns have weights of several steps. Turns of unknown weights do not
    count; the result is empty if there are no others.
    """
    of_attempts = [[*_versions(t)] for group in groups for t in group.trajectories]
    known = [versions for versions in of_attempts if versions]
    ages = [step - version for versions in known for version in versions]
    if not ages:
        return {}
    return {
        "offpolicy/steps_mean": sum(ages) / len(ages),
        "offpolicy/steps_max": float(max(ages)),
        "offpolicy/mixed_share": sum(len({*v}) > 1 for v in known) / len(known),
    }


def _versions(trajectory: Any) -> Iterator[int]:
    items = (i for h in trajectory.histories() for i in h.messages_and_choices if is_choice(i))
    for tokens in map(tokens_of, items):
        if tokens is not None and tokens.policy_version is not None:
            yield tokens.policy_version
