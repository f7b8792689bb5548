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

log = logging.getLogger("art_local")


def refitted(
    tensors: Mapping[str, Tensor],
    was: tuple[int, int],
    now: tuple[int, int],
    fresh: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return an adapter in another rank and alpha.

    In a higher rank its change of the model is the same: the new rows of A are those of `fresh`,
    and the new columns of B are 0. In a lower rank it is the closest one. Raises ConfigError for
    stacked experts.
    """
    (old_rank, old_alpha), (rank, alpha) = was, now
    ratio = (old_alpha / old_rank) / (alpha / rank)
    found = dict(tensors)
    for name, stored_KI in tensors.items():
        stem, is_a, rest = name.rpartition(".lora_A.")
        if not is_a:
            continue
        other = f"{stem}.lora_B.{rest}"
        if stored_KI.shape[0] != old_rank:
            raise ConfigError(
                f"the rank of the stacked experts {stem} can't be changed",
                f"Use lora_rank={old_rank} and lora_alpha={old_alpha}.",
            )
        a_KI, b_OK = stored_KI, tensors[other] * ratio
        if rank < old_rank:
            a_KI, b_OK = _closest(a_KI, b_OK, rank)
        extra = fresh[name][old_rank:].detach().to(a_KI)
        found[name] = torch.cat([a_KI, extra])
        found[other] = torch.cat([b_OK, b_OK.new_zeros(len(b_OK), len(extra))], 1)
    return found


def _closest(a_KI: Tensor, b_OK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left_OQ, r_QK = torch.linalg.qr(b_OK.double())
    right_IQ, s_QK = torch.linalg.qr(a_KI.double().T)
    u, values, v = torch.linalg.svd(r_QK @ s_QK.T, full_matrices=False)
    root = values[:rank].sqrt()
    a, b = root[:, None] * (v[:rank] @ right_IQ.T), left_OQ @ u[:, :rank] * root
    return a.to(a_KI), b.to(b_OK)


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
