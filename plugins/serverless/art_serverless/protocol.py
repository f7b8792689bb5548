"""The protocol between client and server: paths, names, options and events. No HTTP here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

import attrs

from art_core import AdvantageSpec, ConfigError, LossSpec, TrainConfig
from art_core.base.errors import unknown
from art_core.rl.batch import no_critic
from art_core.rl.sft import sft_config

DEFAULT_URL: Final = "https://api.training.wandb.ai/v1"
MODELS: Final = "/preview/models"
JOBS: Final = "/preview/training-jobs"
SFT_JOBS: Final = "/preview/sft-training-jobs"
MAX_ITEMS: Final = 100
MAX_WAIT_S: Final = 30.0

SCHEME: Final = "wandb-artifact:///"
MAX_INFERENCE_NAME: Final = 2048
_INFERENCE_NAME = re.compile(r"(?P<stem>.+?)(?:(?::step|@)(?P<step>[0-9]{1,15}))?", re.DOTALL)


@attrs.frozen(kw_only=True)
class Address:
    """A model's owner, project and name at a service."""

    entity: str
    project: str
    name: str

    @property
    def uri(self) -> str:
        """The model name in a request for the newest weights."""
        return SCHEME + "/".join(quote(p, safe="") for p in (self.entity, self.project, self.name))


@attrs.frozen(kw_only=True)
class InferenceName:
    """A model name in a request, parsed: a whole address or only `name`, and a step (None: the
    newest).
    """

    name: str
    entity: str | None = None
    project: str | None = None
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> InferenceName:
        """Parse `wandb-artifact:///<entity>/<project>/<name>[:step<N>]` or `<name>[@<step>]`."""
        if len(text) > MAX_INFERENCE_NAME:
            return cls(name=text)
        match = _INFERENCE_NAME.fullmatch(text)
        assert match is not None or not text, "the pattern takes any text"
        stem = match["stem"] if match else ""
        step = int(match["step"]) if match and match["step"] else None
        parts = [unquote(p) for p in stem.removeprefix(SCHEME).split("/")]
        if stem.startswith(SCHEME) and len(parts) == 3:
            return cls(entity=parts[0], project=parts[1], name=parts[2], step=step)
        return cls(name=stem, step=step)


@attrs.frozen(kw_only=True)
class Event:
    """An event of a training job; `id` is the cursor for the events after it."""

    id: str
    type: str
    data: dict[str, Any]


LEGACY: Final = ("normalize_advantages", "ppo", "precalculate_logprobs")
"""Options of the protocol that TrainConfig has under other names, or not at all."""


def train_config(
    given: Mapping[str, Any],
    losses: Mapping[str, LossSpec],
    advantages: Mapping[str, AdvantageSpec],
) -> dict[str, Any]:
    """Return a job's `experimental_config` as options of `train`; null means the default.

    `losses` and `advantages` are those of the server's plugins. Raises ConfigError for an unknown
    option, with the nearest known one, and for an unsupported value, such as a loss by import path.
    """
    options = {key: value for key, value in given.items() if value is not None}
    known = [field.name for field in attrs.fields(TrainConfig)]
    for key in options:
        if key not in known and key not in LEGACY:
            raise ConfigError(unknown("training option", key, [*known, *LEGACY]))
    if options.pop("precalculate_logprobs", False):
        raise ConfigError(
            "precalculate_logprobs is not supported: the engine's own log-probs are used",
            "Leave it out.",
        )
    scaled = options.pop("normalize_advantages", None)
    if scaled is not None:
        options.setdefault("scale_rewards", scaled)
    if options.pop("ppo", False):
        options.setdefault("loss_fn", "ppo")
    check_names(options)
    if TrainConfig.of(losses, advantages, **options).critic:
        raise no_critic()
    return options


SFT: Final = "sft_config"
"""The key of a stored job's config under which a job of supervised fine-tuning has its options."""


def sft_options(given: Any) -> dict[str, Any]:
    """Return the `config` of a job of supervised fine-tuning as options; null means the default."""
    if not isinstance(given or {}, dict):
        raise ConfigError("config must be an object")
    options = {key: value for key, value in (given or {}).items() if value is not None}
    sft_config(**options)
    return options


def check_finite(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number that JSON cannot represent: null would mean the default."""
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                f"{name}={value} can't be sent to a service",
                "For no limit give a large number such as 1e9.",
            )


def check_names(options: Mapping[str, Any]) -> None:
    """Raise ConfigError unless functions are given by name: a service does not run code of its
    clients.
    """
    for option, thing, hook in (
        ("loss_fn", "a loss's name", "art_losses"),
        ("advantage_fn", "the name of advantages", "art_advantages"),
    ):
        name = options.get(option) or ""
        if not isinstance(name, str) or ":" in name:
            raise ConfigError(
                f"{option} must be {thing} on a service, got {name!r:.100}",
                f"Offer it by a plugin (hook {hook}) that is installed where the model trains.",
            )
