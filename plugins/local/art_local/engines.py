"""Choose and create the inference engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch  # noqa: TID253

from art_core.base.errors import ConfigError, unknown
from art_core.base.files import read_json
from art_core.base.progress import progress_bar
from art_local.constraints.grammar import LocalGrammars
from art_local.engine import DeviceLock, TransformersEngine
from art_local.models.load import REMEDY, architecture_of, load_config, rotary_lengths
from art_local.models.placement import Placement, placement
from art_local.options import INT8, LocalOptions
from art_local.vllm.client import VllmClient
from art_local.vllm.command import ServerSettings
from art_local.vllm.engine import ModelFacts, VllmEngine
from art_local.vllm.install import installed, required
from art_local.vllm.server import ManagedServer, RemoteServer, Server
from art_local.vllm.supervisor import Timeouts

ENGINES = ("auto", "transformers", "vllm")


@attrs.frozen(kw_only=True)
class EngineChoice:
    """The engine that serves a backend's models, and its device.

    `devices` are all devices of one vLLM server, if there are several. `url` and `key` are those of
    a vLLM server that this backend does not manage. `own_device` is False if the engine shares the
    trainer's device.
    """

    name: str
    device: torch.device
    own_device: bool = False
    devices: tuple[torch.device, ...] = ()
    url: str | None = None
    key: str | None = attrs.field(default=None, repr=False)
    timeouts: Timeouts = attrs.field(factory=Timeouts)

    @property
    def sleeps(self) -> bool:
        """Whether vLLM shares the trainer's CUDA device, so that it sleeps during training."""
        return self.name == "vllm" and self.device.type == "cuda" and not self.own_device

    def __str__(self) -> str:
        if self.url:
            return f"vllm at {self.url}"
        return f"{self.name} on {self.device}" if self.own_device else self.name


def choose(options: LocalOptions, trainer: Placement) -> EngineChoice:
    """Choose an engine: for "auto", vLLM on CUDA if it is installed for it and LoRA is trained,
    else the embedded engine, which is twice as fast on a CPU.

    Raises ConfigError for an engine that is unknown or not installed, and for options that do not
    fit together.
    """
    name, url = options.engine, options.engine_url
    if name not in ENGINES:
        raise ConfigError(unknown("engine", name, ENGINES))
    named = options.engine_devices or (options.engine_device or str(trainer.device),)
    devices = tuple(placement(name).device for name in named)
    device = devices[0]
    if options.deterministic:
        name = _deterministic(options, trainer)
    if options.engine_weights is not None:
        name = _rounded(options, trainer)
    if name == "auto":
        found = installed() if device.type == "cuda" else None
        fits = found is not None and found.variant == device.type
        name = "vllm" if url or (fits and not options.full_finetune) else "transformers"
    own_device = device != trainer.device or url is not None
    if name == "transformers":
        if len(options.trainer_devices or ()) > 1:
            own_device = len(devices) > 1  # the trainer's devices are those of the ranks
        _reject(
            {"engine_device": own_device, **_given(options, "url", "key", "args", "timeouts")},
            "is for engine='vllm'; the embedded engine shares the trainer's device",
            "Use engine='vllm', or leave it out.",
        )
        return EngineChoice(name=name, device=device)
    return _vllm(options, devices, own_device=own_device)


def _vllm(
    options: LocalOptions, devices: tuple[torch.device, ...], *, own_device: bool
) -> EngineChoice:
    url = options.engine_url
    if options.full_finetune:
        raise ConfigError(
            "engine 'vllm' serves LoRA adapters; full_finetune changes all weights",
            "Use engine='transformers' for full fine-tuning, or train LoRA.",
        )
    if url is None:
        required(devices[0].type)
        _reject(
            _given(options, "key"),
            "is the key of the server at engine_url; one of our own has a random key",
            "Give engine_url too, or leave it out.",
        )
    else:
        _reject(
            _given(options, "args", "device", "devices"),
            "is for a server of our own; the one at engine_url runs already",
            "Leave it out, and start that server with the settings that it needs.",
        )
    _check_own(options, devices, url)
    return EngineChoice(
        name="vllm",
        device=devices[0],
        own_device=own_device,
        devices=devices if len(devices) > 1 else (),
        url=url,
        key=options.engine_key,
        timeouts=_timeouts(options.engine_timeouts or {}),
    )


def _check_own(options: LocalOptions, devices: tuple[torch.device, ...], url: str | None) -> None:
    """Raise ConfigError for several devices of vLLM, or of its trainer, that are not apart."""
    names = [str(device) for device in devices]
    if len(set(names)) < len(names):
        raise ConfigError(f"engine_devices names a device twice: {', '.join(names)}")
    if len(names) > 1 and "cpu" in names:
        raise ConfigError("several engine_devices are for CUDA", "Leave engine_devices out.")
    trainers = options.trainer_devices or ()
    shared = [name for name in names if name in trainers and name != "cpu"]
    if url is None and shared and max(len(trainers), len(names)) > 1:
        raise ConfigError(
            f"vLLM and the trainer would share {', '.join(shared)}: with several devices "
            "each needs its own",
            "Give engine_devices that are not among trainer_devices.",
        )


def _deterministic(options: LocalOptions, trainer: Placement) -> str:
    if trainer.device.type != "cpu":
        raise ConfigError(
            f"deterministic=True is for the CPU: on {trainer.device} sums are added in an order "
            "that changes from run to run",
            "Use device='cpu', or leave deterministic out.",
        )
    if options.engine == "vllm":
        raise ConfigError(
            "deterministic=True is for the embedded engine: vLLM's log-probs depend on the other "
            "requests of a batch",
            "Use engine='transformers', or leave deterministic out.",
        )
    return "transformers"


def _rounded(options: LocalOptions, trainer: Placement) -> str:
    stated = f"engine_weights={options.engine_weights!r}"
    _reject(
        {stated: trainer.device.type != "cpu"},
        f"is for the CPU, and this model is on {trainer.device}",
        "Use device='cpu', or leave engine_weights out.",
    )
    _reject(
        {stated: options.engine == "vllm"},
        "is for the embedded engine",
        "Use engine='transformers', or give engine_args={'quantization': ...}.",
    )
    _reject(
        {stated: options.deterministic},
        "computes the rows of a batch together, and deterministic=True does not",
        "Leave one of them out.",
    )
    return "transformers"


def _given(options: LocalOptions, *names: str) -> dict[str, Any]:
    return {f"engine_{name}": getattr(options, f"engine_{name}") for name in names}


def _reject(given: Mapping[str, Any], problem: str, remedy: str) -> None:
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} {problem}", remedy)


def _timeouts(given: Mapping[str, float]) -> Timeouts:
    known = [field.name for field in attrs.fields(Timeouts)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(unknown("engine_timeouts entry", name, known))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ConfigError(f"engine_timeouts[{name!r}] must be a number, got {value!r}")
    return Timeouts(**given)  # type: ignore[arg-type]


def charged_devices(trainers: Sequence[Placement], choice: EngineChoice) -> list[Placement]:
    """Return the devices that a backend pays for: the trainers', and the CUDA devices of an engine
    that the backend manages, each of them once.
    """
    found = {str(each.device): each for each in trainers}
    if choice.url is None and choice.device.type == "cuda":
        engines = map(str, choice.devices or (choice.device,))
        found |= {name: placement(name) for name in engines if name not in found}
    return list(found.values())


def embedded_engine(
    base_model: Any, options: LocalOptions, lock: DeviceLock, grammars: LocalGrammars | None = None
) -> TransformersEngine:
    """Create an embedded engine over a loaded base model."""
    engine = TransformersEngine(
        base_model,
        lock=lock,
        max_batch_size=options.max_batch_size,
        request_timeout_s=options.request_timeout_s,
        deterministic=options.deterministic,
        int8=options.engine_weights == INT8,
        vocabulary=None if grammars is None else grammars.vocabulary,
    )
    if options.context_length is not None:
        engine.context_length = min(engine.context_length, options.context_length)
    return engine


def start_vllm(
    choice: EngineChoice, options: LocalOptions, trainer: Placement, directory: Path, run_dir: Path
) -> VllmEngine:
    """Start a vLLM server for the base model in `directory`, or connect to one. It is not ready
    yet; adapters and the log are written into `run_dir`.
    """
    facts = model_facts(directory, options.context_length)

    def connect() -> Server:
        return RemoteServer(VllmClient(choice.url or "", choice.key))

    launch: Callable[[], Server] = connect
    if choice.url is None:
        python = required(choice.device.type).python
        settings = _server_settings(choice, options, trainer, directory, facts)
        launch = partial(ManagedServer.launch, python, settings, run_dir / "vllm.log")
    return VllmEngine(
        launch,
        facts,
        run_dir / "serving",
        request_timeout_s=options.request_timeout_s,
        timeouts=choice.timeouts,
        sleeps=choice.sleeps,
    )


def _server_settings(
    choice: EngineChoice,
    options: LocalOptions,
    trainer: Placement,
    directory: Path,
    facts: ModelFacts,
) -> ServerSettings:
    return ServerSettings(
        model=directory,
        device=str(choice.device),
        devices=tuple(map(str, choice.devices)),
        dtype=str(trainer.dtype).removeprefix("torch."),
        context_length=facts.context_length,
        max_rank=options.lora_rank,
        adapters=max(options.served_steps, 2),
        max_sequences=options.max_batch_size,
        memory_share=memory_share(choice.device) if choice.sleeps else None,
        sleeps=choice.sleeps,
        extra=dict(options.engine_args or {}),
    )


def wait_ready(engine: VllmEngine, *, progress: bool) -> None:
    """Wait until a server is ready, and show the time and its newest log line; EngineError if it
    does not start.
    """
    with progress_bar(
        desc="start vLLM", bar_format="{desc}: {elapsed}{postfix}", disable=not progress
    ) as bar:

        def tick(line: str) -> None:
            bar.set_postfix_str(line[-60:], refresh=False)
            bar.update()

        engine.wait_ready(tick)


def model_facts(directory: Path, context_length: int | None) -> ModelFacts:
    """Read a base model's context length, vocabulary size and end tokens from its directory.

    Raises ConfigError for a model that states no context length, and for one whose rotary positions
    would differ between trainer and vLLM, which computes all sequences with the positions of the
    longest one.
    """
    config = load_config(directory).get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        raise ConfigError(
            f"{architecture_of(config)} states no context length (max_position_embeddings)", REMEDY
        )
    generation = read_json(directory / "generation_config.json")
    ends = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
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
    """Return the share of a shared device's memory that the server may use: nine tenths of what
    the trainer leaves free once its copy of the base model is loaded.
    """
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return max(0.1, 0.9 * free / total)
