"""Changes between a run's last process and this one: of an adapter's rank, and of the loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253

from art_core.base.errors import ConfigError
from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossPreset
from art_local.training.low_rank import closest, per_expert, side_by_side, with_rank, with_rows

log = logging.getLogger("art_local")


def refitted(
    tensors: Mapping[str, Tensor],
    was: tuple[int, int],
    now: tuple[int, int],
    fresh: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return an adapter in another rank and alpha.

    In a higher rank its change of the model is the same, in a lower one it is the closest. Rows of
    A that have no part in it, the new ones too, are those of `fresh`.
    """
    (old_rank, old_alpha), (rank, alpha) = was, now
    ratio = (old_alpha / old_rank) / (alpha / rank)
    found = dict(tensors)
    for name, stored_RI in tensors.items():
        stem, is_a, rest = name.rpartition(".lora_A.")
        if not is_a:
            continue
        other = f"{stem}.lora_B.{rest}"
        experts = len(stored_RI) // old_rank
        a_EKI, b_EOK = per_expert(stored_RI, tensors[other] * ratio, experts)
        if rank < old_rank:
            a_EKI, b_EOK = closest(a_EKI, b_EOK, rank)
        rows_EKI = fresh[name].detach().to(a_EKI).unflatten(0, (experts, rank))
        a_RI, b_OR = side_by_side(*with_rows(*with_rank(a_EKI, b_EOK, rank), rows_EKI))
        found[name], found[other] = a_RI.to(stored_RI), b_OR.to(tensors[other])
    return found


def loss_settings(loss: LossPreset) -> dict[str, Any]:
    """Return a loss's name and parameters, as a manifest records them."""
    return {
        field.name: None if value == math.inf else value
        for field in attrs.fields(LossPreset)
        if isinstance(value := getattr(loss, field.name), (str, float, int))
    }


def check_loss(was: Mapping[str, Any], config: TrainConfig, step: int, *, accept: bool) -> None:
    """Compare the loss of a resumed run's last step with that of the next one; an empty `was` fits.

    Raises ConfigError with the differences, or logs them if they are accepted.
    """
    now = loss_settings(config.loss)
    different = [
        f"{'loss_fn' if key == 'name' else key}={was[key]!r}, this step asks for {now[key]!r}"
        for key in now.keys() & was.keys()
        if was[key] != now[key]
    ]
    if not different:
        return
    text = f"step {step} was trained with {'; with '.join(sorted(different))}"
    if not accept:
        raise ConfigError(
            text, "Use the same loss, or continue with art.backend(..., accept_changes=True)."
        )
    log.warning("%s", text)


def warn_of_threads(manifest: Mapping[str, Any]) -> None:
    """Log a warning if a checkpoint was written with another number of threads, which changes the
    order of sums.
    """
    was, now = manifest.get("threads"), torch.get_num_threads()
    if was not in (None, now):
        log.warning(
            "the checkpoint was written with %s threads, and there are %d now: the run is not "
            "bit-exact (OMP_NUM_THREADS, torch.set_num_threads)",
            was,
            now,
        )
