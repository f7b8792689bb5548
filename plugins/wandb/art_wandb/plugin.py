"""The hook of art-wandb, and the options of its sink. wandb is imported when a run opens."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

from art_core import CommandSpec, Sink, SinkSpec, hookimpl

_HOST = "https://api.wandb.ai"


@attrs.frozen(kw_only=True)
class WandbOptions:
    """Options of the W&B run. None leaves an option to wandb's own variable, such as
    `WANDB_ENTITY`.

    `alerts` raises an alert for each new finding of the doctor.
    `mode` is offline if no API key is known. `trajectories` logs each row's trajectories as a
    table, from the files that the run keeps. `init_timeout_s` and `finish_timeout_s` limit how long
    wandb waits for the network; data that was not uploaded stays on disk for `wandb sync`.
    """

    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] | None = None
    notes: str | None = None
    dir: str | Path | None = None
    save_code: bool | None = None
    trajectories: bool | None = None
    alerts: bool | None = None
    init_timeout_s: float = 20.0
    finish_timeout_s: float = 8.0

    def given(self) -> dict[str, Any]:
        """Return the options that differ from the defaults, as JSON values; paths are absolute."""
        default = WandbOptions()
        values = {f.name: getattr(self, f.name) for f in attrs.fields(WandbOptions)}
        changed = {k: v for k, v in values.items() if v != getattr(default, k)}
        if self.tags is not None:
            changed["tags"] = list(self.tags)
        if self.dir is not None:
            changed["dir"] = str(Path(self.dir).absolute())
        return changed

    def chosen_mode(self) -> str | None:
        """Return the chosen mode, else offline without a key; None leaves it to wandb."""
        if self.mode is not None:
            return self.mode
        return None if "WANDB_MODE" in os.environ or has_key() else "offline"

    def reason(self) -> str:
        """Return the reason why a run is offline."""
        chosen = self.mode is not None or "WANDB_MODE" in os.environ
        return "as asked" if chosen or has_key() else "no WANDB_API_KEY and no `wandb login`"

    def saves_code(self) -> bool:
        """Return whether the user's code is saved, which is off by default."""
        return _flag("WANDB_SAVE_CODE") if self.save_code is None else self.save_code

    def logs_trajectories(self) -> bool:
        """Return whether trajectories are logged as tables, which is off by default."""
        chosen = self.trajectories
        return _flag("ART_WANDB_TRAJECTORIES") if chosen is None else chosen

    def raises_alerts(self) -> bool:
        """Return whether findings of the doctor are alerts, which is off by default."""
        return _flag("ART_WANDB_ALERTS") if self.alerts is None else self.alerts


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}


def has_key() -> bool:
    """Return whether wandb will find credentials: in the environment, or those of `wandb login`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _HOST)).netloc
    path = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_sink(**options: Any) -> SinkSpec:
    """Return a W&B sink for `sinks=[...]`; the options are the fields of `WandbOptions`.

    Raises TypeError for an option that does not exist.
    """
    chosen = WandbOptions(**options)

    def create() -> Sink:
        from art_wandb.sink import WandbSink

        return WandbSink(chosen)

    return SinkSpec(
        name="wandb",
        create=create,
        summary="a run on Weights & Biases; without an API key, offline in the run's directory",
        default=has_key() or "WANDB_MODE" in os.environ,
        options=chosen.given(),
        factory=wandb_sink,
    )


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default sink if WANDB_MODE or a key is set."""
    return [wandb_sink()]


@hookimpl
def art_commands() -> list[CommandSpec]:
    """Offer `art wandb report`."""
    from art_wandb.command import COMMAND

    return [COMMAND]
