"""A run's steps: which were trained, and the value of each metric at each step."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from art_core.metrics.row import MetricsRow
from art_core.metrics.taxonomy import Taxonomy

_LEARNED = ("reward/", "loss/")
_TRAIN = (*_LEARNED, "train/")


def is_training_row(step: int, split: str, metrics: Mapping[str, float]) -> bool:
    """Return whether a row, under canonical names, shows that its step was trained.

    That is a row on the split `train`; one that ART wrote has no split, and is known by a reward
    or a loss. Step 0 is the base model: it counts only with a reward or a loss of its own on
    `train`, not when evaluations or costs were logged before the first step.
    """
    if split == "train" and step > 0:
        return True
    return split in ("train", "") and any(key.startswith(_TRAIN) for key in metrics)


def attempt_of(row: MetricsRow) -> int:
    """Return a row's attempt; 0 where another program wrote something else there."""
    return row.attempt if isinstance(row.attempt, int) else 0


@attrs.define
class StepValues:
    """The values of a run's metrics by step: `curves` maps a key to {step: value}.

    Of several rows of a step, metrics that add up (costs, times and counts of a step) are the sum,
    others are those of the newest row. An attempt that trains from an older step on takes the
    place of what earlier attempts logged there and later, except for costs: they were paid.
    With `keys`, only these metrics are kept.
    """

    taxonomy: Taxonomy
    keys: Collection[str] | None = None
    curves: dict[str, dict[int, float]] = attrs.field(factory=dict)
    _adds_up: dict[str, bool] = attrs.field(factory=dict)
    _attempt: int = 0
    _highest: int = -1

    def add(self, row: MetricsRow, metrics: Mapping[str, float]) -> None:
        """Add a row, whose metrics are given under canonical names."""
        self._note_attempt(row, metrics)
        for key in metrics if self.keys is None else metrics.keys() & self.keys:
            value = metrics[key]
            curve = self.curves.setdefault(key, {})
            adds_up = self._adds_up.get(key)
            if adds_up is None:
                adds_up = self._adds_up[key] = _adds_up(key, self.taxonomy)
            curve[row.step] = curve.get(row.step, 0.0) + value if adds_up else value

    def _note_attempt(self, row: MetricsRow, metrics: Mapping[str, float]) -> None:
        if row.split != "train" or not any(key.startswith(_LEARNED) for key in metrics):
            return
        attempt = attempt_of(row)
        if attempt > self._attempt and row.step <= self._highest:
            self._drop_from(row.step)
            self._highest = row.step
        self._attempt = attempt
        self._highest = max(self._highest, row.step)

    def _drop_from(self, first: int) -> None:
        for key, curve in self.curves.items():
            if not _is_paid(key):
                self.curves[key] = {step: value for step, value in curve.items() if step < first}


def _adds_up(key: str, taxonomy: Taxonomy) -> bool:
    return _is_paid(key) or ("/cum/" not in key and taxonomy.spec(key).combine == "sum")


def _is_paid(key: str) -> bool:
    return key.startswith("costs/") and not key.startswith("costs/cum/")
