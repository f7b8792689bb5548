"""ART's types: messages, and the options and results of a training step."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import pydantic
from openai.types.chat.chat_completion import Choice

import art_core

__all__ = [
    "Choice",
    "LocalTrainResult",
    "Message",
    "MessageOrChoice",
    "Messages",
    "MessagesAndChoices",
    "ServerlessTrainResult",
    "Tools",
    "TrainConfig",
    "TrainResult",
    "TrainSFTConfig",
    "Verbosity",
]

Message = dict[str, Any]
MessageOrChoice = Message | Choice
Messages = list[Any]
MessagesAndChoices = list[Any]
Tools = list[Any]
Verbosity = Literal[0, 1, 2]
TrainResult = art_core.TrainResult


class TrainConfig(pydantic.BaseModel):
    """Options of `model.train`. `beta` is the name of older releases for a KL penalty."""

    learning_rate: float = 5e-6
    beta: float = 0.0
    kl_penalty_coef: float = 0.0
    grad_accumulation_sequences: int | None = pydantic.Field(default=None, ge=1)


class TrainSFTConfig(pydantic.BaseModel):
    """Options of `model.train_sft`: one learning rate, or one for each batch."""

    learning_rate: float | list[float] = 5e-5
    batch_size: int | Literal["auto"] = "auto"


@attrs.frozen(kw_only=True)
class LocalTrainResult(art_core.TrainResult):
    """The result of `LocalBackend.train`."""

    @property
    def checkpoint_path(self) -> str | None:
        """The directory of the step's checkpoint; None if none was written."""
        return None if self.checkpoint is None else str(self.checkpoint)


@attrs.frozen(kw_only=True)
class ServerlessTrainResult(art_core.TrainResult):
    """The result of `ServerlessBackend.train`."""

    artifact_name: str | None = None
