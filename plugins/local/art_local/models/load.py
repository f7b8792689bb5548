"""Load base models and add LoRA to them: by transformers and peft, or by another loader."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch  # noqa: TID253

from art_core.base.errors import ConfigError
from art_core.base.files import read_json
from art_local.models.placement import Placement
from art_local.models.supported import REMEDY, architecture_of, refused_unless_possible

if TYPE_CHECKING:
    from peft import LoraConfig


class Loader(Protocol):
    """Creates models with the structure of transformers' own.

    With `merges`, LoRA's forward pass may run on merged weights, which the embedded engine serves.
    Without it, the forward pass of every layer stays as it is, and the engine gets adapters.
    """

    @property
    def merges(self) -> bool:
        """Whether the forward pass runs on merged weights."""

    def base(self, directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
        """Load a causal language model from a checked directory onto a device."""

    def lora(self, model: Any, config: LoraConfig) -> Any:
        """Return a peft model over a loaded one; the caller initializes the adapter's weights."""


class PlainLoader:
    """The loader that uses transformers and peft."""

    merges = True

    def base(self, directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
        """Load safetensors from a directory."""
        return load_model(directory, placement, dtype)

    def lora(self, model: Any, config: LoraConfig) -> Any:
        """Add LoRA to the model's layers."""
        from peft import get_peft_model

        return get_peft_model(model, config, autocast_adapter_dtype=False)


PLAIN = PlainLoader()


def load_model(directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
    """Load a causal language model from safetensors onto the device, without changing the global
    RNG.

    Raises ConfigError for a model that transformers cannot load or whose files lack parameters.
    """
    config = load_config(directory)
    architecture = architecture_of(config)
    with (
        refused_unless_possible(architecture, "loaded"),
        silence_logs(),
        torch.random.fork_rng(devices=[]),
    ):
        model, info = auto_class(config).from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{directory} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]!r} "
            f"first, which would be random; it was saved as {architecture}",
            REMEDY,
        )
    return model.to(placement.device)


def auto_class(config: Any) -> Any:
    """Return transformers' class for a config's language model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    text = type(config) in AutoModelForCausalLM._model_mapping  # noqa: SLF001
    return AutoModelForCausalLM if text else AutoModelForImageTextToText


def load_config(directory: Path) -> Any:
    """Read a base model's config; ConfigError for one that transformers does not know."""
    from transformers import AutoConfig

    stored = read_json(directory / "config.json")
    named = (stored.get("architectures") or [None])[0] or stored.get("model_type")
    with refused_unless_possible(str(named or directory), "loaded"):
        return AutoConfig.from_pretrained(directory, local_files_only=True)


def sharing_parameters(model: Any) -> Any:
    """Return a copy of a model's structure over the same parameters."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters()})


@contextmanager
def silence_logs() -> Iterator[None]:
    """Show no transformers progress bars and nothing below an error inside the block."""
    import transformers.modeling_gguf_pytorch_utils as gguf
    from tqdm.auto import tqdm
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # the reader of GGUF files has its own bar, which transformers' switch does not affect
    gguf.tqdm = partial(tqdm, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        gguf.tqdm = tqdm
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
