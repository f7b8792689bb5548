"""The ids of scenarios, and the order in which they are taken: each once per epoch, by a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.base.progress import progress_bar

T = TypeVar("T")
Order = Callable[[int, int], Sequence[int]]
"""Returns the order of the items of an epoch: their indexes, given their number and the epoch's."""


@attrs.frozen
class DatasetBatch(Generic[T]):
    """The items of a step; `step` counts over all epochs, `epoch_step` within one."""

    items: list[T]
    step: int
    epoch: int
    epoch_step: int


def epoch_order(size: int, epoch: int, seed: int = 0) -> list[int]:
    """Return the indexes of `size` items in the order of an epoch, which has its own."""
    return random.Random(f"{seed} {epoch}").sample(range(size), size)


def places(size: int, start: int, end: int, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the epoch and the index of the items from place `start` to place `end`, which count
    over all epochs.
    """
    known, order = -1, []
    for place in range(start, end):
        epoch, within = divmod(place, size)
        if epoch != known:
            known, order = epoch, epoch_order(size, epoch, seed)
        yield epoch, order[within]


def iterate_dataset(
    dataset: Sequence[T],
    groups_per_step: int = 1,
    num_epochs: int = 1,
    initial_step: int = 0,
    use_tqdm: bool = True,  # noqa: FBT001, FBT002
    *,
    seed: int = 0,
    order: Order | None = None,
) -> Iterator[DatasetBatch[T]]:
    """Yield batches of `groups_per_step` items, each item once per epoch, in an order that depends
    on the seed and the epoch only. The last batch of an epoch may be smaller.

    `initial_step` is the first step to yield: the step at which a run is resumed. `order` gives
    another order. The global random numbers are not touched.
    """
    if groups_per_step < 1:
        raise ConfigError(f"groups_per_step must be at least 1, got {groups_per_step!r}")
    per_epoch = -(-len(dataset) // groups_per_step)
    total = per_epoch * num_epochs
    bar = None
    if use_tqdm and total:
        bar = progress_bar(initial=initial_step, total=total, desc="dataset", unit="step")
    try:
        for step in range(initial_step, total):
            epoch, epoch_step = divmod(step, per_epoch)
            ordered = (
                epoch_order(len(dataset), epoch, seed)
                if order is None
                else order(len(dataset), epoch)
            )
            first = epoch_step * groups_per_step
            items = [dataset[index] for index in ordered[first : first + groups_per_step]]
            yield DatasetBatch(items, step, epoch, epoch_step)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()


def scenario_id(scenario: Any) -> str:
    """Return a scenario's id: its `id` or `scenario_id`, else text itself, else a hash of its JSON.

    Raises ConfigError for a scenario without an id that JSON can't hold.
    """
    for name in ("id", "scenario_id"):
        value = (
            scenario.get(name) if isinstance(scenario, Mapping) else getattr(scenario, name, None)
        )
        if value is not None:
            return str(value)
    if isinstance(scenario, (str, int, float)):
        return str(scenario)
    if attrs.has(type(scenario)):
        scenario = attrs.asdict(scenario)
    try:
        data = orjson.dumps(scenario, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise ConfigError(
            f"a scenario needs an id: {scenario!r:.80} has none", "Give it a field `id`."
        ) from error
    return hashlib.sha256(data).hexdigest()[:12]
