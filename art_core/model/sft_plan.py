"""Plans of supervised fine-tuning: which examples each step trains, in a fixed order.

The order depends on a seed only, so the step of a checkpoint is the position in the data. The plans
of a run are in its `sft.json`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import read_json, replace_json

FILE = "sft.json"
DIGEST = 12
"""Hexadecimal digits of an example's digest."""


@attrs.frozen(kw_only=True)
class SFTPlan:
    """The steps of one `train_sft`: which examples each of them trains.

    `start` is the model's step before the first, `digests` are those of the examples in their
    order. `left_at` is the step at which another kind of training took the model over.
    """

    start: int
    digests: str
    batch_size: int
    epochs: int
    batches_per_step: int
    shuffle: bool
    seed: int
    left_at: int | None = None

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.digests) // DIGEST

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one pass over the data; the last may be smaller."""
        return -(-self.examples // self.batch_size)

    @property
    def batches(self) -> int:
        """Batches of all passes."""
        return self.batches_per_epoch * self.epochs

    @property
    def steps(self) -> int:
        """Training steps."""
        return -(-self.batches // self.batches_per_step)

    @property
    def end(self) -> int:
        """The model's step after the last."""
        return self.start + self.steps

    def is_open(self, step: int) -> bool:
        """Return whether the model, at a step, is in the middle of this plan."""
        return self.start <= step < self.end and (self.left_at is None or step < self.left_at)

    def is_complete(self, step: int) -> bool:
        """Return whether a model at a step has all of this plan behind it."""
        return step >= self.end and self.left_at is None

    def numbers(self, step: int) -> range:
        """Return the numbers of the batches that the step after `step` trains."""
        first = (step - self.start) * self.batches_per_step
        return range(first, min(first + self.batches_per_step, self.batches))

    def places(self, number: int, orders: dict[int, list[int]]) -> list[int]:
        """Return which examples a batch has; `orders` keeps the order of an epoch."""
        epoch, batch = divmod(number, self.batches_per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = list(range(self.examples))
            if self.shuffle:
                random.Random(f"{self.seed}/{epoch}").shuffle(orders[epoch])
        return orders[epoch][batch * self.batch_size : (batch + 1) * self.batch_size]

    def differences(self, other: SFTPlan) -> list[str]:
        """Return in which options and data another plan differs, in words."""
        options = ("batch_size", "epochs", "batches_per_step", "shuffle", "seed")
        found = [
            f"{name} was {getattr(self, name)} and is {getattr(other, name)}"
            for name in options
            if getattr(self, name) != getattr(other, name)
        ]
        return found + data_differences(_split(self.digests), _split(other.digests), "examples")


def _split(digests: str) -> list[str]:
    return [digests[i : i + DIGEST] for i in range(0, len(digests), DIGEST)]


def data_differences(before: list[str], now: list[str], noun: str) -> list[str]:
    """Return how two datasets differ, in words, by the digests of their items in order."""
    if before == now:
        return []
    old, new = Counter(before), Counter(now)
    gone, added = (old - new).total(), (new - old).total()
    if not gone and not added:
        return [f"the {noun} are the same in another order"]
    pairs = enumerate(zip(before, now, strict=False), start=1)
    first = next((n for n, (a, b) in pairs if a != b), min(len(before), len(now)) + 1)
    counts = f"had {len(before)} {noun} and has {len(now)}: {gone} are gone, {added} are new"
    one = noun.removesuffix("s")
    return [f"the dataset {counts}, and the first difference is at {one} {first}"]


@attrs.frozen
class SFTPlans:
    """The plans of a run, oldest first, in its directory."""

    run_dir: Path

    def read(self) -> list[SFTPlan]:
        """Return the plans."""
        return [SFTPlan(**plan) for plan in read_json(self.run_dir / FILE).get("plans", ())]

    def write(self, plans: Iterable[SFTPlan]) -> None:
        """Replace the plans."""
        replace_json(self.run_dir / FILE, {"plans": [attrs.asdict(plan) for plan in plans]})

    def leave(self, step: int) -> None:
        """Record that other training begins at a step, so that its steps are not taken for those of
        an unfinished plan.
        """
        if not (self.run_dir / FILE).exists():
            return
        plans = self.read()
        left = [attrs.evolve(p, left_at=step) if p.is_open(step) else p for p in plans]
        if left != plans:
            self.write(left)


def chosen_plan(
    plans: SFTPlans, new: SFTPlan, used: set[int], *, resume: bool
) -> tuple[SFTPlan, bool]:
    """Return the plan to train, and whether it was completed by an earlier process.

    Without `resume` that is the new one. Otherwise it is an unfinished one, which must have the
    same data and options, or a complete one with the same data and options that this object has not
    trained (`used` are their starts): a program that is started again passes over it.
    """
    step, known = new.start, [plan for plan in plans.read() if plan.start <= new.start]
    unfinished = next((plan for plan in reversed(known) if plan.is_open(step)), None)
    if unfinished is not None and resume:
        if differences := unfinished.differences(new):
            raise ConfigError(
                f"the model is at step {step}, inside the train_sft of steps "
                f"{unfinished.start + 1} to {unfinished.end}, and {'; '.join(differences)}",
                "Give what it was begun with to go on. train_sft(..., resume=False) begins anew "
                f"from the weights of step {step}.",
            )
        chosen = attrs.evolve(unfinished, left_at=None)
        plans.write([chosen if plan == unfinished else plan for plan in known])
        return chosen, False
    if unfinished is None and resume:
        for plan in known:
            if plan.is_complete(step) and plan.start not in used and not plan.differences(new):
                return plan, True
    left = [attrs.evolve(p, left_at=step) if p == unfinished else p for p in known]
    plans.write([*left, new])
    return new, False
