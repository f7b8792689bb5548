"""The devices that a model is trained on, when there may be several."""

from __future__ import annotations

from collections.abc import Sequence

import torch  # noqa: TID253
import torch.distributed as dist  # noqa: TID253

from art_core.base.errors import ConfigError
from art_local.models.load import PLAIN, Loader
from art_local.models.placement import Placement, placement
from art_local.options import LocalOptions

MIN_TORCH = (2, 9)
"""The first with what `art_local.distributed` needs of FSDP2 and its checkpoints."""


def trainer_placements(options: LocalOptions, loader: Loader = PLAIN) -> list[Placement]:
    """Return where a model is trained, one entry per rank.

    Raises ConfigError for several devices together with options that do not go with them.
    """
    names = options.trainer_devices or (options.device,)
    found = [placement(name, options.dtype) for name in names]
    if len(found) > 1:
        _check_together(found)
        _check_options(options, loader)
    return found


def _check_together(found: Sequence[Placement]) -> None:
    names = [str(each.device) for each in found]
    if len({each.device.type for each in found}) > 1:
        raise ConfigError(f"trainer_devices must be of one kind, got {', '.join(names)}")
    if found[0].device.type != "cpu" and len(set(names)) < len(names):
        raise ConfigError(
            f"trainer_devices names a device twice: {', '.join(names)}",
            "Each of them holds one part of the model.",
        )
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH or not dist.is_available():
        raise ConfigError(
            f"several trainer_devices need torch {'.'.join(map(str, MIN_TORCH))} with "
            f"torch.distributed, and here is torch {torch.__version__}",
            "Update torch, or train on one device.",
        )


def _check_options(options: LocalOptions, loader: Loader) -> None:
    problems = {
        "full_finetune=True": options.full_finetune,
        "deterministic=True": options.deterministic,
        "this backend's loader of base models": loader is not PLAIN,
    }
    for what, given in problems.items():
        if given:
            raise ConfigError(
                f"{what} does not go with several trainer_devices, which train LoRA of a base "
                "model that transformers loads, and add up sums in another order than one device",
                "Leave one of them out.",
            )
