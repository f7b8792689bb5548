"""The adapter of a model: its settings, as checkpoint manifests record them."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_local.session.checkpoints import StoredCheckpoint


@attrs.frozen(kw_only=True)
class AdapterCard:
    """LoRA of a rank and alpha (None: all weights are trained), initialized from a seed, over a
    base that may be quantized ("nf4").
    """

    lora: tuple[int, int] | None
    seed: int
    quantization: str | None = None

    def __str__(self) -> str:
        return (
            "full fine-tuning" if self.lora is None else "LoRA rank {} alpha {}".format(*self.lora)
        )

    def manifest(self) -> dict[str, Any]:
        """Return the entries for a checkpoint's manifest."""
        rank, alpha = self.lora or (None, None)
        return {
            "lora_rank": rank,
            "lora_alpha": alpha,
            "full_finetune": self.lora is None,
            "quantization": self.quantization,
        }

    def check(self, stored: StoredCheckpoint) -> None:
        """Raise ConfigError for a checkpoint with other settings."""
        for key, value in self.manifest().items():
            found = stored.manifest.get(key)
            if found != value:
                raise ConfigError(
                    f"checkpoint {stored.path} was trained with {key}={found!r}, this run "
                    f"asks for {value!r}",
                    "Use the same options to resume, or another model name to start afresh.",
                )
