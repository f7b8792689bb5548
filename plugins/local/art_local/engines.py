"""Which engine serves a model: chosen from the backend's options and what is installed; made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch  # noqa: TID253

from art_core.base.errors import ConfigError, unknown
from art_core.base.files import read_json
from art_core.base.progress import progress_bar
from art_local.models.load import load_config
from art_local.models.placement import Placement, placement
from art_local.models.rotary import rotary_lengths
from art_local.models.supported import REMEDY, architecture_of
from art_local.vllm.client import VllmClient
from art_local.vllm.command import ServerSettings
from art_local.vllm.engine import ModelFacts, VllmEngine
from art_local.vllm.environment import installed, required
from art_local.vllm.server import ManagedServer, RemoteServer, Server
from art_local.vllm.supervisor import Patience

ENGINES = ("auto", "transformers", "vllm")


@attrs.frozen(kw_only=True)
class EngineChoice:
    """The engine that a backend serves with.

    `device` is the engine's; `url` that of a server which somebody else runs.
    """

    name: str
    device: torch.device
    own_device: bool = False
    url: str | None = None
    key: str | None = attrs.field(default=None, repr=False)
    args: Mapping[str, Any] = attrs.field(factory=dict)
    patience: Patience = attrs.field(factory=Patience)

    @property
    def sleeps(self) -> bool:
        """Whether vLLM is on the trainer's own CUDA device, and gives it up while that trains."""
        return self.name == "vllm" and self.device.type == "cuda" and not self.own_device

    def __str__(self) -> str:
        if self.url:
            return f"vllm at {self.url}"
        return f"{self.name} on {self.device}" if self.own_device else self.name


def choose(
    engine: str,
    trainer: Placement,
    *,
    full_finetune: bool,
    engine_device: str | None,
    engine_url: str | None,
    engine_key: str | None,
    engine_args: Mapping[str, Any] | None,
    engine_timeouts: Mapping[str, float] | None,
) -> EngineChoice:
    """Choose an engine.

    "auto" is vLLM where it is installed for the engine's kind of device and LoRA is trained, else
    the embedded engine.

    Raises ConfigError for what does not exist, is not installed or does not go together.
    """
    if engine not in ENGINES:
        raise ConfigError(unknown("engine", engine, ENGINES))
    device = placement(engine_device or str(trainer.device)).device
    if engine == "auto":
        found = installed()
        fits = found is not None and found.variant == device.type
        engine = "vllm" if engine_url or (fits and not full_finetune) else "transformers"
    own = device != trainer.device or engine_url is not None
    if engine == "transformers":
        _only_vllm(
            engine_device=own,
            engine_url=engine_url,
            engine_key=engine_key,
            engine_args=engine_args,
            engine_timeouts=engine_timeouts,
        )
        return EngineChoice(name=engine, device=device)
    if full_finetune:
        raise ConfigError(
            "engine 'vllm' serves LoRA adapters; full_finetune changes all weights",
            "Use engine='transformers' for full fine-tuning, or train LoRA.",
        )
    if engine_url is None:
        required(device.type)
        _not_without_url(engine_key)
    else:
        _not_with_url(engine_args=engine_args, engine_device=engine_device)
    return EngineChoice(
        name=engine,
        device=device,
        own_device=own,
        url=engine_url,
        key=engine_key,
        args=dict(engine_args or {}),
        patience=_patience(engine_timeouts or {}),
    )


def _only_vllm(**options: Any) -> None:
    for option, value in options.items():
        if value:
            raise ConfigError(
                f"{option} is for engine='vllm'; the embedded engine shares the trainer's device",
                "Use engine='vllm', or leave it out.",
            )


def _not_without_url(engine_key: str | None) -> None:
    if engine_key:
        raise ConfigError(
            "engine_key is the key of the server at engine_url; one of our own has a random key",
            "Give engine_url too, or leave it out.",
        )


def _not_with_url(**options: Any) -> None:
    for option, value in options.items():
        if value:
            raise ConfigError(
                f"{option} is for a server of our own; the one at engine_url runs already",
                "Leave it out, and start that server with what it needs.",
            )


def _patience(timeouts: Mapping[str, float]) -> Patience:
    known = [field.name for field in attrs.fields(Patience)]
    for name, value in timeouts.items():
        if name not in known:
            raise ConfigError(unknown("engine_timeouts entry", name, known))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ConfigError(f"engine_timeouts[{name!r}] must be a number, got {value!r}")
    return Patience(**timeouts)  # type: ignore[arg-type]


def held_devices(trainer: Placement, choice: EngineChoice) -> list[Placement]:
    """Return the devices that a backend holds and has to pay for: the trainer's, and a CUDA device
    that its server has to itself. A server that somebody else runs is somebody else's bill.
    """
    mine = choice.own_device and choice.url is None and choice.device.type == "cuda"
    return [trainer, placement(str(choice.device))] if mine else [trainer]


@attrs.frozen(kw_only=True)
class ServingNeeds:
    """What a vLLM server for one base model is started with, beside the choice of the engine."""

    directory: Path
    run_dir: Path
    trainer: Placement
    context_length: int | None
    max_rank: int
    served_steps: int
    max_batch_size: int
    request_timeout_s: float


def start_vllm(choice: EngineChoice, needs: ServingNeeds) -> VllmEngine:
    """Start a server for a base model, or the connection to one; it is not ready yet."""
    facts = model_facts(needs.directory, needs.context_length)
    return VllmEngine(
        _launcher(choice, needs, facts),
        facts,
        needs.run_dir / "serving",
        request_timeout_s=needs.request_timeout_s,
        patience=choice.patience,
        sleeps=choice.sleeps,
    )


def wait_ready(engine: VllmEngine, *, progress: bool) -> None:
    """Wait for a server, showing how long and what it says; EngineError when it does not start."""
    with progress_bar(
        desc="start vLLM", bar_format="{desc}: {elapsed}{postfix}", disable=not progress
    ) as bar:

        def tick(said: str) -> None:
            bar.set_postfix_str(said[-60:], refresh=False)
            bar.update()

        engine.wait_ready(tick)


def _launcher(choice: EngineChoice, needs: ServingNeeds, facts: ModelFacts) -> Callable[[], Server]:
    if choice.url is not None:
        url, key = choice.url, choice.key
        return lambda: RemoteServer(VllmClient(url, key))
    settings = ServerSettings(
        model=needs.directory,
        device=str(choice.device),
        dtype=str(needs.trainer.dtype).removeprefix("torch."),
        context_length=facts.context_length,
        max_rank=needs.max_rank,
        adapters=max(needs.served_steps, 2),
        max_sequences=needs.max_batch_size,
        memory_share=memory_share(choice.device) if choice.sleeps else None,
        sleeps=choice.sleeps,
        extra=choice.args,
    )
    python = required(choice.device.type).python
    return lambda: ManagedServer.launch(python, settings, needs.run_dir / "vllm.log")


def model_facts(directory: Path, context_length: int | None) -> ModelFacts:
    """Read what the engine must know of a base model from its directory.

    Raises ConfigError for a model that states no context length, and for one whose rotary positions
    would differ between vLLM, which computes all sequences with those of the longest, and the
    trainer.
    """
    config = load_config(directory).get_text_config()
    if getattr(config, "max_position_embeddings", None) is None:
        raise ConfigError(
            f"{architecture_of(config)} states no context length (max_position_embeddings)", REMEDY
        )
    generation = read_json(directory / "generation_config.json")
    ends = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
    longest = config.max_position_embeddings
    context = min(longest, context_length or longest)
    limit = rotary_lengths(config).longest(1)
    if limit is not None and limit < context:
        raise ConfigError(
            f"{architecture_of(config)} has other rotary positions beyond {limit} tokens, and with "
            f"a context of {context} tokens vLLM uses those for shorter sequences, too",
            f"Use context_length={limit}, or engine='transformers'.",
        )
    return ModelFacts(
        context_length=context,
        vocabulary=config.vocab_size,
        ends=(ends,) if isinstance(ends, int) else tuple(ends or ()),
    )


def memory_share(device: torch.device) -> float:
    """The share of a shared device's memory that the server may take: nine tenths of what the
    trainer, whose copy of the base model is there already, leaves free.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(0.1, 0.9 * free / total)
