"""The names of ART (`openpipe-art`) over art-core: scripts written for ART run unchanged."""

from __future__ import annotations

from typing import Any

from art._alone import check_alone

check_alone()

from art import dev  # noqa: E402
from art._missing import NAMES, explain_missing_modules, missing  # noqa: E402
from art.backend import Backend  # noqa: E402
from art.batches import trajectory_group_batches  # noqa: E402
from art.gather import gather_trajectories, gather_trajectory_groups  # noqa: E402
from art.local.backend import LocalBackend  # noqa: E402
from art.model import Model, TrainableModel  # noqa: E402
from art.serverless.backend import ServerlessBackend  # noqa: E402
from art.trajectories import History, Trajectory, TrajectoryGroup  # noqa: E402
from art.types import (  # noqa: E402
    LocalTrainResult,
    Message,
    MessageOrChoice,
    Messages,
    MessagesAndChoices,
    ServerlessTrainResult,
    Tools,
    TrainConfig,
    TrainResult,
    TrainSFTConfig,
)
from art.utils import retry  # noqa: E402
from art.yield_trajectory import capture_yielded_trajectory, yield_trajectory  # noqa: E402

explain_missing_modules()

__all__ = [
    "Backend",
    "History",
    "LocalBackend",
    "LocalTrainResult",
    "Message",
    "MessageOrChoice",
    "Messages",
    "MessagesAndChoices",
    "Model",
    "ServerlessBackend",
    "ServerlessTrainResult",
    "Tools",
    "TrainConfig",
    "TrainResult",
    "TrainSFTConfig",
    "TrainableModel",
    "Trajectory",
    "TrajectoryGroup",
    "capture_yielded_trajectory",
    "dev",
    "gather_trajectories",
    "gather_trajectory_groups",
    "retry",
    "trajectory_group_batches",
    "yield_trajectory",
]


def __getattr__(name: str) -> Any:
    raise missing(name, NAMES, "art")
