"""Batches of a dataset, in the order that ART gives them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import art_core
from art_core import DatasetBatch

T = TypeVar("T")


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
    return art_core.iterate_dataset(
        dataset, groups_per_step, num_epochs, initial_step, use_tqdm, order=_order
    )


def _order(size: int, epoch: int) -> list[int]:
    order = list(range(size))
    random.Random(epoch).shuffle(order)
    return order
