"""The options of the local backend, declared and checked in one place: those that the backend
`unsloth` has too, and the others. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.rl.config import Check, cap, count, one_of, optional, price

AUTO = "auto"
INT8 = "int8"


def _checked(check: Check, default: Any) -> Any:
    def validate(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        check(attribute.name, value)

    return attrs.field(default=default, validator=validate)


def _device_names(given: Any) -> tuple[str, ...] | None:
    """Return the names of devices that are given by index or name."""
    if given is None:
        return None
    names = () if isinstance(given, (str, int)) else tuple(given)
    kinds = {type(name) for name in names}
    if not names or not kinds <= {int, str}:
        raise ConfigError(
            f"devices must be a list of indices or names, got {given!r:.80}",
            "Give indices of CUDA devices, such as [0, 1], or names, such as ['cpu', 'cpu'].",
        )
    return tuple(f"cuda:{name}" if isinstance(name, int) else name for name in names)


def _check_checkpointing(name: str, value: Any) -> None:
    if value != AUTO and not isinstance(value, bool):
        raise ConfigError(f"{name} must be 'auto', True or False, got {value!r}")


@attrs.frozen(kw_only=True)
class SharedOptions:
    """Options of the backends `local` and `unsloth`; `LocalBackend` describes them.

    Raises ConfigError for an invalid value.
    """

    device: str | None = None
    dtype: str | None = None
    engine: str = "auto"
    engine_device: str | None = None
    engine_url: str | None = None
    engine_key: str | None = attrs.field(default=None, repr=False)
    engine_args: Mapping[str, Any] | None = None
    engine_timeouts: Mapping[str, float] | None = None
    gpu_cost_per_hour_usd: float | None = _checked(optional(price), None)
    lora_rank: int = _checked(count, 16)
    lora_alpha: int = _checked(count, 32)
    activation_checkpointing: bool | str = _checked(_check_checkpointing, AUTO)
    chat_template: str | os.PathLike[str] | None = None
    seed: int = 0
    deterministic: bool = False
    accept_changes: bool = False
    max_batch_size: int = _checked(count, 64)
    served_steps: int = _checked(count, 2)
    request_timeout_s: float = _checked(cap, 600.0)
    progress: bool = True


@attrs.frozen(kw_only=True)
class LocalOptions(SharedOptions):
    """Options of `LocalBackend`, whose docstring describes them."""

    trainer_devices: Sequence[str] | None = attrs.field(default=None, converter=_device_names)
    engine_devices: Sequence[str] | None = attrs.field(default=None, converter=_device_names)
    full_finetune: bool = False
    engine_weights: str | None = _checked(optional(one_of((INT8,))), None)
    context_length: int | None = _checked(optional(count), None)

    def __attrs_post_init__(self) -> None:
        for one, several in (("device", "trainer_devices"), ("engine_device", "engine_devices")):
            if getattr(self, one) is not None and getattr(self, several) is not None:
                raise ConfigError(f"{one} and {several} are both given", "Leave one of them out.")


def read_template(given: str | os.PathLike[str] | None) -> str | None:
    """Return the text of a template given as text or as the path of a file.

    Raises ConfigError for a file that can't be read.
    """
    if given is None or (isinstance(given, str) and "{" in given):
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"chat_template={os.fspath(given)!r:.200} is neither a jinja template nor a file with "
            f"one: {error}",
            "Give the template's text, or the path of a file with it.",
        ) from error
