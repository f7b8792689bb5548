"""What both ends of the wire agree on: paths, names, options and events. Values only; no HTTP."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

import attrs

from art_core import ConfigError, LossSpec, TrainConfig
from art_core.base.errors import unknown

DEFAULT_URL: Final = "https://api.training.wandb.ai/v1"
MODELS: Final = "/preview/models"
JOBS: Final = "/preview/training-jobs"
SFT_JOBS: Final = "/preview/sft-training-jobs"
MOST_ITEMS: Final = 100
LONGEST_WAIT_S: Final = 30.0

SCHEME: Final = "wandb-artifact:///"
MAX_INFERENCE_NAME: Final = 2048
_INFERENCE_NAME = re.compile(r"(?P<stem>.+?)(?:(?::step|@)(?P<step>[0-9]{1,15}))?", re.DOTALL)


@attrs.frozen(kw_only=True)
class Address:
    """Who a model belongs to and what it is called, wherever it is served."""

    entity: str
    project: str
    name: str

    @property
    def uri(self) -> str:
        """The name to put into a request for the newest weights."""
        return SCHEME + "/".join(quote(p, safe="") for p in (self.entity, self.project, self.name))


@attrs.frozen(kw_only=True)
class InferenceName:
    """A model's name in a request, taken apart: all of its address or its `name` alone, and a step
    (None: the newest).
    """

    name: str
    entity: str | None = None
    project: str | None = None
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> InferenceName:
        """Read `wandb-artifact:///<entity>/<project>/<name>[:step<N>]` or `<name>[@<step>]`."""
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
    """Something that a training job tells; `id` is the cursor to go on from."""

    id: str
    type: str
    data: dict[str, Any]


LEGACY: Final = ("normalize_advantages", "ppo", "precalculate_logprobs")
"""Options of the protocol that TrainConfig says in other words, or not at all."""


def train_config(given: Mapping[str, Any], losses: Mapping[str, LossSpec]) -> dict[str, Any]:
    """Return what a job's `experimental_config` means as options of `train`; null is the default.

    `losses` are what the server's plugins offer. Raises ConfigError for an unknown option, naming
    the nearest, and for one that can't be done, a loss by import path among them.
    """
    options = {key: value for key, value in given.items() if value is not None}
    known = [field.name for field in attrs.fields(TrainConfig)]
    for key in options:
        if key not in known and key not in LEGACY:
            raise ConfigError(unknown("training option", key, [*known, *LEGACY]))
    if options.pop("precalculate_logprobs", False):
        raise ConfigError(
            "precalculate_logprobs is not done here: the engine's own log-probs are used",
            "Leave it out.",
        )
    scaled = options.pop("normalize_advantages", None)
    if scaled is not None:
        options.setdefault("scale_rewards", scaled)
    if options.pop("ppo", False):
        options.setdefault("loss_fn", "ppo")
    checked_loss(options)
    TrainConfig.of(losses, **options)
    return options


def check_finite(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number that JSON has no form for: null would mean the default."""
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(
                f"{name}={value} can't be sent to a service", "For no limit give 1e9, say."
            )


def checked_loss(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a loss that is not named: a service runs no code of its clients."""
    loss = options.get("loss_fn", "")
    if not isinstance(loss, str) or ":" in loss:
        raise ConfigError(
            f"loss_fn must be a loss's name on a service, got {loss!r:.100}",
            "Offer it by a plugin (hook art_losses) that is installed where the model trains.",
        )
