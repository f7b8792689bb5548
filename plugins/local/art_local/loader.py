"""How a base model and its LoRA are made: by transformers and peft, or as another backend says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch  # noqa: TID253

from art_local.placement import Placement
from art_local.quiet import quiet_transformers

if TYPE_CHECKING:
    from peft import LoraConfig


class Loader(Protocol):
    """Makes models that transformers could have made.

    `merges` says that LoRA's forward pass may run on merged weights, which the embedded engine
    serves. Where it is False the model's own forward pass is left alone, in every layer, and the
    engine takes adapters.
    """

    @property
    def merges(self) -> bool:
        """Whether the forward pass runs on merged weights."""

    def base(self, directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
        """Load a causal language model from a checked directory onto a device."""

    def lora(self, model: Any, config: LoraConfig) -> Any:
        """Return a peft model over a loaded one; weights of its adapter are drawn anew after."""


class PlainLoader:
    """The loader that asks transformers and peft."""

    merges = True

    def base(self, directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
        """Load safetensors from a directory."""
        return load_model(directory, placement, dtype)

    def lora(self, model: Any, config: LoraConfig) -> Any:
        """Put LoRA into the model's layers."""
        from peft import get_peft_model

        return get_peft_model(model, config, autocast_adapter_dtype=False)


PLAIN = PlainLoader()


def load_model(directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
    """Load a causal language model from safetensors onto the device; the global RNG stays as it
    was.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        text = type(config) in AutoModelForCausalLM._model_mapping  # noqa: SLF001
        auto = AutoModelForCausalLM if text else AutoModelForImageTextToText
        model = auto.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    return model.to(placement.device)
