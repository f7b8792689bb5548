"""Models trained and served on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from art._options import local_options, trainer_defaults
from art.backend import Backend
from art.trajectories import TrajectoryGroup
from art.types import LocalTrainResult

if TYPE_CHECKING:
    from art.model import TrainableModel


class LocalBackend(Backend):
    """Trains and serves on one device of this machine.

    `path` is the directory of runs (default: `ART_DIR`, else `.art`), `gpu_cost_per_hour_usd` the
    price of the device. `in_process` changes nothing. Any other option is one of
    `art backends local`; it goes before those of the model's `_internal_config`.
    """

    ours = "local"

    def __init__(
        self,
        *,
        in_process: bool = False,
        path: str | None = None,
        gpu_cost_per_hour_usd: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path=path, gpu_cost_per_hour_usd=gpu_cost_per_hour_usd, **options)

    def options_of(self, model: TrainableModel) -> dict[str, Any]:
        """Return the options that a model's `_internal_config` asks for."""
        return local_options(model.internal_config, vllm=_vllm_serves())

    def train_defaults(self, model: TrainableModel) -> dict[str, Any]:
        """Return ART's defaults, with the model's `trainer_args`."""
        return trainer_defaults(model.internal_config)

    async def train(
        self, model: TrainableModel, trajectory_groups: Iterable[TrajectoryGroup], **options: Any
    ) -> LocalTrainResult:
        """Train a step with ART's options and defaults; log it with `model.log`."""
        result = await super().train(model, trajectory_groups, **options)
        return LocalTrainResult(**attrs.asdict(result, recurse=False))


def _vllm_serves() -> bool:
    """Return whether vLLM is installed here, which then serves."""
    try:
        from art_local.vllm.install import installed
    except ImportError:
        return False  # the error for this comes with the backend
    return installed() is not None
