"""How a model is adapted, as the options say it and its checkpoints' manifests repeat it."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_local.session.checkpoints import StoredCheckpoint


@attrs.frozen(kw_only=True)
class Recipe:
    """How a model is adapted: by LoRA of a rank and alpha (None: whole), drawn from a seed, over a
    base that may be quantized ("nf4").
    """

    lora: tuple[int, int] | None
    seed: int
    quantization: str | None = None

    @property
    def rank(self) -> int:
        """The adapter's rank; 0 without one."""
        return self.lora[0] if self.lora else 0

    def __str__(self) -> str:
        return (
            "full fine-tuning" if self.lora is None else "LoRA rank {} alpha {}".format(*self.lora)
        )

    def about(self) -> dict[str, Any]:
        """As a manifest says it."""
        rank, alpha = self.lora or (None, None)
        return {
            "lora_rank": rank,
            "lora_alpha": alpha,
            "full_finetune": self.lora is None,
            "quantization": self.quantization,
        }

    def check(self, found: StoredCheckpoint) -> None:
        """Raise ConfigError for a checkpoint of another recipe."""
        for key, value in self.about().items():
            stored = found.manifest.get(key)
            if stored != value:
                raise ConfigError(
                    f"checkpoint {found.path} was trained with {key}={stored!r}, this run "
                    f"asks for {value!r}",
                    "Use the same options to resume, or another model name to start afresh.",
                )
