"""ART's path of these names."""

from art.dev import (
    InitArgs,
    InternalModelConfig,
    PeftArgs,
    TinkerArgs,
    TinkerNativeArgs,
    TinkerTrainingClientArgs,
    TrainerArgs,
)

__all__ = [
    "InitArgs",
    "InternalModelConfig",
    "PeftArgs",
    "TinkerArgs",
    "TinkerNativeArgs",
    "TinkerTrainingClientArgs",
    "TrainerArgs",
]
