"""TensorBoard as a sink of art-core."""

from __future__ import annotations

from art_tensorboard.plugin import tensorboard_sink

__all__ = ["tensorboard_sink"]
