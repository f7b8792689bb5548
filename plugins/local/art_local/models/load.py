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


CONVERTIBLE = frozenset({"fp8", "mxfp4"})
"""Kinds of quantized weights that transformers converts to floats: DeepSeek's and gpt-oss's."""

TEXT_ONLY = frozenset({"llama4"})
"""Multimodal models whose whole forward pass fails in transformers 5.24."""


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
            config=_unquantized(config),
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


def _unquantized(config: Any) -> Any:
    """Let transformers convert quantized weights to floats as it loads them; ConfigError for a kind
    of quantization that it cannot convert.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return config
    kind = str(quantization.get("quant_method"))
    if kind not in CONVERTIBLE:
        raise ConfigError(
            f"{architecture_of(config)} has quantized weights ({kind}), and training needs floats",
            "Choose the base model that is not quantized.",
        )
    config.quantization_config = {**quantization, "dequantize": True}
    return config


def auto_class(config: Any) -> Any:
    """Return transformers' class for a config's language model, with its other parts unless only
    the text model was saved; ConfigError when there is none.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    texts = AutoModelForCausalLM._model_mapping  # noqa: SLF001
    images = AutoModelForImageTextToText._model_mapping  # noqa: SLF001
    kind = type(config)
    if kind not in texts and kind not in images:
        raise ConfigError(
            f"{architecture_of(config)} cannot be loaded here: transformers has no causal language "
            "model of this kind",
            REMEDY,
        )
    if kind not in images or config.model_type in TEXT_ONLY:
        return AutoModelForCausalLM
    same = (architecture_of(config), images[kind].__name__)
    text_only = kind in texts and texts[kind].__name__ in same
    return AutoModelForCausalLM if text_only else AutoModelForImageTextToText


def load_config(directory: Path) -> Any:
    """Read a base model's config; ConfigError for one that transformers does not know."""
    from transformers import CONFIG_MAPPING, AutoConfig

    stored = read_json(directory / "config.json")
    named = (stored.get("architectures") or [None])[0] or stored.get("model_type")
    if "auto_map" in stored and stored.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f"{named} needs Python code that comes with the model, and such code is never run",
            REMEDY,
        )
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
