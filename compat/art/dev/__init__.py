"""ART's unstable options. Each is a dict; `art._options` reads the entries that art-core has."""

from __future__ import annotations

from typing import Any

__all__ = [
    "EngineArgs",
    "InitArgs",
    "InternalModelConfig",
    "OpenAIServerConfig",
    "PeftArgs",
    "ServerArgs",
    "TinkerArgs",
    "TinkerNativeArgs",
    "TinkerTrainingClientArgs",
    "TrainConfig",
    "TrainSFTConfig",
    "TrainerArgs",
]

Args = dict[str, Any]


class InternalModelConfig(Args):
    """Options of a model: `init_args`, `engine_args`, `peft_args`, `trainer_args`, and others."""


class InitArgs(Args):
    """How the base model is loaded."""


class EngineArgs(Args):
    """Arguments of vLLM."""


class PeftArgs(Args):
    """The LoRA adapter."""


class TrainerArgs(Args):
    """The optimizer."""


class TinkerArgs(Args):
    """A model at Tinker."""


class TinkerNativeArgs(Args):
    """A model at Tinker."""


class TinkerTrainingClientArgs(Args):
    """The adapter at Tinker."""


class TrainConfig(Args):
    """Further options of a training step."""


class TrainSFTConfig(Args):
    """Further options of supervised fine-tuning."""


class OpenAIServerConfig(Args):
    """The server that answers requests."""


class ServerArgs(Args):
    """Arguments of that server."""
