"""The local backend with models that Unsloth loads; all else is art-local's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from art_core import ConfigError, GpuTime
from art_local.backend import LocalBackend
from art_local.models.load import silence_logs
from art_local.models.placement import Placement, placement
from art_local.options import AUTO
from art_local.training.noise import preserved_random_state
from art_local.vllm.install import installed

if TYPE_CHECKING:
    from peft import LoraConfig

MAX_LENGTH = 1 << 20
NF4 = "nf4"


class UnslothLocal(LocalBackend):
    """The local backend with base models and LoRA of Unsloth (see `art_unsloth.options`).

    On CUDA Unsloth replaces the forward pass of transformers' classes by its own kernels, which the
    embedded engine cannot run, so vLLM serves. On a CPU Unsloth does not change the classes.

    Raises ConfigError for options that the device does not support.
    """

    def __init__(
        self,
        *,
        load_in_4bit: bool,
        fast_inference: bool | None,
        max_seq_length: int | None,
        engine: str,
        engine_args: dict[str, Any] | None,
        **options: Any,
    ) -> None:
        where = placement(options["device"], options["dtype"])
        on_cuda = where.device.type == "cuda"
        for option, asked in {
            "load_in_4bit": load_in_4bit,
            "fast_inference": fast_inference,
        }.items():
            if asked and not on_cuda:
                raise ConfigError(
                    f"{option}=True needs a CUDA device, and the backend trains on {where}",
                    f"Leave {option} out.",
                )
        if load_in_4bit and options["engine_url"] is None:
            engine_args = {"quantization": "bitsandbytes", **(engine_args or {})}
        super().__init__(
            context_length=max_seq_length,
            engine=_engine(
                engine,
                on_cuda=on_cuda,
                fast=fast_inference,
                here=options["engine_url"] is not None or installed() is not None,
            ),
            engine_args=engine_args,
            loader=UnslothLoader(
                max_seq_length=max_seq_length,
                load_in_4bit=load_in_4bit,
                merges=not on_cuda,
                activation_checkpointing=options.get("activation_checkpointing", AUTO),
            ),
            quantization=NF4 if load_in_4bit else None,
            **options,
        )

    def charged_devices(self) -> list[GpuTime]:
        """Return the devices that models are charged for, with their prices and zero seconds."""
        return self._device_time(seconds=0.0)


def _engine(asked: str, *, on_cuda: bool, fast: bool | None, here: bool) -> str:
    """Return the engine's name. `here` is True if there is a vLLM, installed or at a URL."""
    if not on_cuda:
        return asked
    if fast is False or asked == "transformers" or not here:
        raise ConfigError(
            "on CUDA the backend 'unsloth' serves with vLLM: Unsloth's kernels replace the forward "
            "pass that the embedded engine runs",
            "Run `art engines install vllm` once and leave fast_inference and engine out, or use "
            "the backend 'local'.",
        )
    return "vllm" if asked == "auto" else asked


@attrs.frozen(kw_only=True)
class UnslothLoader:
    """Loads models with `FastLanguageModel` (see `art_local.models.load.Loader`)."""

    max_seq_length: int | None
    load_in_4bit: bool
    merges: bool
    activation_checkpointing: bool | str = AUTO

    def base(self, directory: Path, placement: Placement, dtype: torch.dtype) -> Any:
        """Load a base model; sequences longer than `max_seq_length` are rejected, never cut."""
        from unsloth import FastLanguageModel

        longest = self.max_seq_length or _context_length(directory)
        with silence_logs(), preserved_random_state(placement.device):
            model, _ = FastLanguageModel.from_pretrained(
                str(directory),
                max_seq_length=longest,
                dtype=dtype,
                load_in_4bit=self.load_in_4bit,
                device_map={"": str(placement.device)},
                use_gradient_checkpointing=self._checkpointing,
                local_files_only=True,
                use_exact_model_name=True,
                offload_embedding=False,  # the embedding may also be the trainer's output head
            )
        if not self.merges:  # on a CPU Unsloth does not cut, and packed rows may be longer
            model.get_input_embeddings().register_forward_pre_hook(_Limit(longest))
        return model

    def lora(self, model: Any, config: LoraConfig) -> Any:
        """Add LoRA to the layers of `config`, with Unsloth's kernels where they fit."""
        from unsloth import FastLanguageModel

        named = config.target_modules
        return FastLanguageModel.get_peft_model(
            model,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules=_linear_layers(model) if isinstance(named, str) else sorted(named),
            exclude_modules=config.exclude_modules,
            # without a list Unsloth looks for experts itself
            target_parameters=config.target_parameters or [],
            use_gradient_checkpointing=self._checkpointing,
        )

    @property
    def _checkpointing(self) -> Any:
        # Where LoRA is merged the trainer checkpoints. Elsewhere Unsloth moves activations to the
        # host's memory.
        if self.merges or self.activation_checkpointing is False:
            return False
        return "unsloth"


@attrs.frozen
class _Limit:
    """Rejects sequences that Unsloth would cut without an error."""

    tokens: int

    def __call__(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args and args[0].shape[-1] > self.tokens:
            raise ConfigError(
                f"a sequence has {args[0].shape[-1]} tokens, and max_seq_length is {self.tokens}",
                "Raise max_seq_length, or leave such trajectories out of the step.",
            )


def _context_length(directory: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or MAX_LENGTH)


def _linear_layers(model: Any) -> list[str]:
    """Return the names of all linear layers but the output head, as peft's "all-linear"."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )
