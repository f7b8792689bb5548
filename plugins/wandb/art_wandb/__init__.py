"""Weights & Biases as a sink of art-core."""

from __future__ import annotations

from art_wandb.plugin import wandb_sink

__all__ = ["wandb_sink"]
