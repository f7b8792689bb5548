"""Models trained and served by a service: W&B Training, or `art serve`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from art.backend import Backend
from art.trajectories import TrajectoryGroup
from art.types import ServerlessTrainResult

if TYPE_CHECKING:
    from art.model import TrainableModel


class ServerlessBackend(Backend):
    """Trains and serves at a service. Any other option is one of `art backends serverless`."""

    ours = "serverless"

    def __init__(
        self, *, api_key: str | None = None, base_url: str | None = None, **options: Any
    ) -> None:
        super().__init__(api_key=api_key, base_url=base_url, **options)

    def options_of(self, model: TrainableModel) -> dict[str, Any]:
        """Return the team that owns a model, if it has one."""
        return {} if model.entity is None else {"entity": model.entity}

    async def train(
        self, model: TrainableModel, trajectory_groups: Iterable[TrajectoryGroup], **options: Any
    ) -> ServerlessTrainResult:
        """Train a step with ART's options and defaults; log it with `model.log`."""
        result = await super().train(model, trajectory_groups, **options)
        return ServerlessTrainResult(**attrs.asdict(result, recurse=False))
