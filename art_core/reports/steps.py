"""Which steps of a run were trained: the one rule for every report that divides by them."""

from __future__ import annotations

from collections.abc import Mapping

_LEARNED = ("reward/", "loss/", "train/")


def is_training_row(step: int, split: str, metrics: Mapping[str, float]) -> bool:
    """Return whether a row, under canonical names, shows that its step was trained.

    That is a row on the split `train`; one that ART wrote has no split, and is known by a reward
    or a loss. Step 0 is the base model: it counts only with a reward or a loss of its own on
    `train`, not when evaluations or costs were logged before the first step.
    """
    if split == "train" and step > 0:
        return True
    return split in ("train", "") and any(key.startswith(_LEARNED) for key in metrics)
