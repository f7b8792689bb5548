"""How the W&B run is made: what may be chosen, by option or by environment."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

_HOST = "https://api.wandb.ai"


@attrs.frozen(kw_only=True)
class Options:
    """Choices about the W&B run. None leaves one to wandb's own variable, `WANDB_ENTITY` and so on.

    `mode` is offline where no API key is known. `trajectories` logs each row's trajectories as a
    table, from the files that the run keeps. `init_timeout_s` and `finish_timeout_s` bound what
    wandb waits for the network; what was not uploaded then lies on disk for `wandb sync`.
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
    init_timeout_s: float = 20.0
    finish_timeout_s: float = 8.0

    def given(self) -> dict[str, Any]:
        """Return the options that differ from the defaults, as JSON values; paths are absolute."""
        default = Options()
        values = {f.name: getattr(self, f.name) for f in attrs.fields(Options)}
        changed = {k: v for k, v in values.items() if v != getattr(default, k)}
        if self.tags is not None:
            changed["tags"] = list(self.tags)
        if self.dir is not None:
            changed["dir"] = str(Path(self.dir).absolute())
        return changed

    def chosen_mode(self) -> str | None:
        """Return the mode to ask for: the chosen one, else offline without a key; None is left to
        wandb.
        """
        if self.mode is not None:
            return self.mode
        return None if "WANDB_MODE" in os.environ or has_key() else "offline"

    def reason(self) -> str:
        """Say why a run is offline."""
        asked = self.mode is not None or "WANDB_MODE" in os.environ
        return "as asked" if asked or has_key() else "no WANDB_API_KEY and no `wandb login`"

    def saves_code(self) -> bool:
        """Tell whether the user's code goes along: only when asked for."""
        return _flag("WANDB_SAVE_CODE") if self.save_code is None else self.save_code

    def logs_trajectories(self) -> bool:
        """Tell whether trajectories go along, as tables: only when asked for."""
        asked = self.trajectories
        return _flag("ART_WANDB_TRAJECTORIES") if asked is None else asked


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes", "on"}


def has_key() -> bool:
    """Tell whether wandb will find credentials: in the environment, or where `wandb login` puts
    them.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _HOST)).netloc
    path = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
