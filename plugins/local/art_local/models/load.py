"""Load base models: their weights, configs and tokenizers.

A config also states at which lengths of sequences rotary positions change.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import torch  # noqa: TID253

from art_core.base.collector import importing
from art_core.base.errors import ArtError, ConfigError, EngineError
from art_core.base.files import read_json
from art_local.images.tokenizer import PartsTokenizer
from art_local.models.device_memory import is_out_of_memory
from art_local.models.placement import Placement

if TYPE_CHECKING:
    from peft import LoraConfig

LIBRARIES = frozenset({"torch", "transformers", "peft", "safetensors", "tokenizers"})
REMEDY = "Choose a plain decoder as base model (Llama, Qwen, Mistral, Gemma, SmolLM, ...)."

CONVERTIBLE = frozenset({"fp8", "mxfp4"})
"""Kinds of quantized weights that transformers converts to floats: DeepSeek's and gpt-oss's."""

TEXT_ONLY = frozenset({"llama4"})
"""Multimodal models whose whole forward pass fails in transformers 5.24."""

RotaryGroup = tuple[int, int]
"""A key that is equal for lengths with equal rotary factors."""

MESSAGE = "The quick brown fox."
"""A chat template must render it."""


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
    with importing():
        config = load_config(directory)
        architecture = architecture_of(config)
        with refused_unless_possible(architecture, "loaded"):
            auto = auto_class(config)
            auto._model_mapping.get(type(config), None)  # noqa: SLF001  # imports the model's module
    with (
        refused_unless_possible(architecture, "loaded"),
        silence_logs(),
        torch.random.fork_rng(devices=[]),
    ):
        model, info = auto.from_pretrained(
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


def model_without_values(directory: Path, dtype: torch.dtype) -> Any:
    """Return the model that `load_model` loads, on the meta device: shapes without values."""
    from transformers import GenerationConfig

    config = load_config(directory)
    with silence_logs(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = auto_class(config).from_config(config, dtype=dtype)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


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


def load_tokenizer(directory: Path, template: str | None) -> Any:
    """Load a base model's tokenizer, with another chat template if one is given. Texts are given
    to the template as lists of parts if it reads only these.

    Raises ConfigError if there is no chat template, or it can't render a message.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if template is not None:
        tokenizer.chat_template = template
    try:
        _check_template(tokenizer, directory)
    except ConfigError as error:
        tokenizer = PartsTokenizer(tokenizer, in_parts=True)
        try:
            _check_template(tokenizer, directory)
        except ConfigError:
            raise error from None
    return tokenizer


def _check_template(tokenizer: Any, directory: Path) -> None:
    from jinja2 import TemplateError

    remedy = (
        "Give the backend chat_template=, its text or the path of a jinja file, or train an "
        "instruct model, which comes with one."
    )
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(
            f"base model {directory} has no chat template, so no message can become a prompt",
            remedy,
        ) from error
    try:
        messages = [{"role": "user", "content": MESSAGE}]
        options = {"tokenize": False, "add_generation_prompt": True}
        prompt = tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the chat template of base model {directory} can't render a user message: "
            f"{type(error).__name__}: {error}",
            remedy,
        ) from error
    if MESSAGE not in prompt:
        raise ConfigError(
            f"the chat template of base model {directory} leaves a user message out: its prompt is "
            f"{prompt!r:.200}",
            remedy,
        )


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


@contextmanager
def refused_unless_possible(architecture: str, what: str) -> Iterator[None]:
    """Turn what a library raises inside the block into a ConfigError that names the architecture.

    Errors of art-core, of its code and a lack of memory pass as they are.
    """
    try:
        yield
    except (ArtError, NameError):
        raise
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, AssertionError) and _is_ours(error)):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{architecture} cannot be {what} here: {type(error).__name__}: {reason}", REMEDY
        ) from error


def _is_ours(error: Exception) -> bool:
    """Return whether code of ours, or of a test, raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__"))
    return module.partition(".")[0] not in LIBRARIES


def cannot_serve(architecture: str, error: EngineError) -> ConfigError:
    """Return the refusal of an architecture with which the embedded engine fails."""
    return ConfigError(f"the embedded engine cannot serve {architecture}: {error.args[0]}", REMEDY)


def architecture_of(config: Any) -> str:
    """Return a config's architecture as its author named it, or its model type."""
    named = getattr(config, "architectures", None) or [None]
    return str(named[0] or getattr(config, "model_type", None) or type(config).__name__)


@attrs.frozen(kw_only=True)
class RotaryLengths:
    """The lengths at which a model's rotary factors change.

    transformers takes the factors of "longrope" and "dynamic" positions from the longest sequence
    of a forward pass. A sequence's log-probs depend on the sequence only if all sequences of the
    pass have the same factors.

    `switches`: a sequence longer than one has other factors than one up to it. `dynamic`: each
    length beyond it has factors of its own; None when there is no such length.
    """

    switches: tuple[int, ...] = ()
    dynamic: int | None = None

    def group(self, length: int) -> RotaryGroup:
        """Return a key that is equal for lengths with equal factors."""
        own = 0 if self.dynamic is None or length <= self.dynamic else length
        return bisect_left(self.switches, length), own

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the places of the sequences that may share a forward pass, group by group."""
        found: dict[RotaryGroup, list[int]] = {}
        for place, length in enumerate(lengths):
            found.setdefault(self.group(length), []).append(place)
        return list(found.values())

    def longest(self, length: int) -> int | None:
        """Return the longest sequence that has the factors of this length; None: no limit."""
        place = bisect_left(self.switches, length)
        ends = list(self.switches[place : place + 1])
        if self.dynamic is not None:
            ends.append(max(self.dynamic, length))
        return min(ends, default=None)

    def shortest(self, length: int) -> int:
        """Return the shortest sequence that has the factors of this length."""
        if self.dynamic is not None and length > self.dynamic:
            return length
        place = bisect_left(self.switches, length)
        return self.switches[place - 1] + 1 if place else 1


def rotary_lengths(config: Any) -> RotaryLengths:
    """Read from a model's config at which lengths its rotary factors change."""
    text = config.get_text_config()
    switches, dynamic = set(), None
    for parameters in _rope_parameters(text):
        kind = str(parameters.get("rope_type", "default"))
        if kind == "longrope":
            original = parameters.get("original_max_position_embeddings")
            switches.add(int(original or text.max_position_embeddings))
        elif "dynamic" in kind:
            dynamic = int(text.max_position_embeddings)
    return RotaryLengths(switches=tuple(sorted(switches)), dynamic=dynamic)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a config's rope parameters; some models have them for each type of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    yield from nested or [given]


def reset_dynamic_rotary(model: torch.nn.Module) -> None:
    """Let a model's dynamic rotary factors depend on each forward pass only.

    transformers keeps those of the longest sequence so far for the next, shorter one.
    """
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and _kind_is_dynamic(module):
            module.register_forward_pre_hook(_reset)


def _kind_is_dynamic(module: torch.nn.Module) -> bool:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, Mapping) else [kind]
    return any("dynamic" in str(each) for each in kinds)


def _reset(module: torch.nn.Module, _: tuple[Any, ...]) -> None:
    suffix = "original_inv_freq"
    for name, original in list(module.named_buffers(recurse=False)):
        if name.endswith(suffix):
            prefix = name.removesuffix(suffix)
            setattr(module, f"{prefix}inv_freq", original.clone())
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
