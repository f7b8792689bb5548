"""Batches of a dataset, in the order that ART gives them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import attrs
from tqdm.auto import tqdm

T = TypeVar("T")


@attrs.frozen
class DatasetBatch(Generic[T]):
    """The items of a step; `step` counts over all epochs, `epoch_step` within one."""

    items: list[T]
    step: int
    epoch: int
    epoch_step: int


def iterate_dataset(
    dataset: Sequence[T],
    groups_per_step: int = 1,
    num_epochs: int = 1,
    initial_step: int = 0,
    use_tqdm: bool = True,
) -> Iterator[DatasetBatch[T]]:
    """Yield batches of `groups_per_step` items. Each epoch has the shuffled order of its number.

    `initial_step` is the first step to yield, where an earlier process stopped.
    """
    per_epoch = -(-len(dataset) // groups_per_step)
    bar = tqdm(
        initial=initial_step,
        total=per_epoch * num_epochs,
        desc="Iterating dataset",
        unit="batch",
        disable=not use_tqdm or not dataset,
    )
    with bar:
        for step in range(initial_step, per_epoch * num_epochs):
            epoch, epoch_step = divmod(step, per_epoch)
            order = list(range(len(dataset)))
            random.Random(epoch).shuffle(order)
            first = epoch_step * groups_per_step
            items = [dataset[index] for index in order[first : first + groups_per_step]]
            yield DatasetBatch(items, step, epoch, epoch_step)
            bar.update(1)
