"""The formats of an export: peft's adapter, transformers' whole model, GGUF, Ollama's directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import torch

from art_core.base.errors import ConfigError
from art_local.export.card import model_card
from art_local.export.checkpoint import TrainedModel
from art_local.export.gguf import convert_to_gguf
from art_local.export.ollama import modelfile
from art_local.models.load import load_model, silence_logs
from art_local.models.placement import placement
from art_local.session.checkpoints import ADAPTER_FILES
from art_local.training.lora import dithered, merged_tensors

DTYPES = ("float32", "bfloat16", "float16")
GGUF_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "q8_0"}
"""The name that llama.cpp's converter has for each dtype."""
GGUF_FILE = "model.gguf"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""What a base model that reads images has besides a tokenizer."""


def write_adapter(model: TrainedModel, dtype: str, directory: Path) -> None:
    """Write the LoRA as peft loads it, with tokenizer and generation config.

    Raises ConfigError for a run that trained all weights, or for another dtype than the stored one.
    """
    if model.is_whole:
        raise ConfigError(
            f"{model.run.name} trained all weights, so there is no adapter",
            "Export it as merged, gguf or ollama.",
        )
    if dtype not in ("", "float32"):
        raise ConfigError(
            f"an adapter is stored in float32, and --dtype {dtype} was asked for",
            "Leave --dtype out, or export as merged.",
        )
    for file in ADAPTER_FILES:
        shutil.copyfile(model.stored.path / file, directory / file)
    generation = model.base / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    _finish(model, "adapter", directory)


def write_merged(model: TrainedModel, dtype: str, directory: Path) -> None:
    """Write a whole model as transformers and vLLM load it.

    The sum W + scale * B @ A is computed in float32 and cast afterwards. To bfloat16 it is rounded
    as the engine rounds what it serves: plain rounding would lose most of a small update.
    """
    dtype = dtype or model.dtype
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    whole = load_model(model.base, placement("cpu", "float32"), torch.float32)
    if not model.is_whole:
        whole = _merged(whole, model)
    kind = getattr(torch, dtype)
    for place, parameter in enumerate(whole.parameters()):
        salt = getattr(parameter, "export_salt", place)
        parameter.data = dithered(parameter.data, kind, salt)
    whole.config.dtype = kind
    with silence_logs():
        whole.save_pretrained(directory)
    _finish(model, "merged", directory)


def write_gguf(model: TrainedModel, dtype: str, directory: Path) -> None:
    """Write one GGUF file, by llama.cpp's converter, with the tokenizer and template in it."""
    dtype = dtype or model.dtype
    if dtype not in GGUF_DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(GGUF_DTYPES)}, got {dtype!r}")
    merged = directory / ".merged"
    merged.mkdir()
    try:
        # what is quantized is rounded once, from float32
        write_merged(model, dtype if dtype in ("bfloat16", "float16") else "float32", merged)
        convert_to_gguf(merged, directory / GGUF_FILE, GGUF_DTYPES[dtype])
    finally:
        shutil.rmtree(merged, ignore_errors=True)
    _write_card(model, "gguf", directory)


def write_ollama(model: TrainedModel, dtype: str, directory: Path) -> None:
    """Write a GGUF file and the Modelfile with which `ollama create NAME` takes it."""
    write_gguf(model, dtype, directory)
    text = modelfile(GGUF_FILE, model.tokenizer(), model.base)
    (directory / "Modelfile").write_text(text, encoding="utf-8")
    _write_card(model, "ollama", directory)


@attrs.frozen
class Format:
    """A form of weights: its writer and what loads it."""

    write: Callable[[TrainedModel, str, Path], None]
    loaded_by: str


FORMATS = {
    "adapter": Format(write_adapter, "peft, vLLM's LoRA modules"),
    "merged": Format(write_merged, "transformers, vLLM, SGLang, TRL"),
    "gguf": Format(write_gguf, "llama.cpp and what is built on it"),
    "ollama": Format(write_ollama, "ollama create NAME -f Modelfile"),
}


def _merged(base: Any, model: TrainedModel) -> Any:
    """Set a float32 model's parameters to those merged with the checkpoint's adapter."""
    from peft import PeftModel

    with silence_logs():
        adapted = PeftModel.from_pretrained(base, model.stored.path, local_files_only=True)
    merged = merged_tensors(adapted)
    plain = adapted.unload()
    parameters = dict(plain.named_parameters())
    for salt, (name, tensor) in enumerate(merged.items()):
        parameters[name].data = tensor
        parameters[name].export_salt = salt  # so that rounding is that of the served weights
    return plain


def _finish(model: TrainedModel, form: str, directory: Path) -> None:
    model.tokenizer().save_pretrained(directory)
    for name in PROCESSOR_FILES:
        if (model.base / name).is_file():
            shutil.copyfile(model.base / name, directory / name)
    _write_card(model, form, directory)


def _write_card(model: TrainedModel, form: str, directory: Path) -> None:
    text = model_card(model, form, _sizes(directory.iterdir()))
    (directory / "README.md").write_text(text, encoding="utf-8")


def _sizes(files: Iterable[Path]) -> dict[str, int]:
    return {
        file.name: file.stat().st_size
        for file in sorted(files)
        if file.is_file() and file.name != "README.md"
    }
