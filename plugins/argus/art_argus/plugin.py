"""The hooks of art-argus, and the flag of the stop button. The HTTP client is imported when a run
opens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from art_core import ConfigError, MetricSpec, Sink, SinkSpec, hookimpl

MAX_SILENCE_S = 300.0
_DEFAULTS = {"timeout_s": 15.0, "heartbeat_s": 240.0, "stop_poll_s": 10.0}


def argus_sink(
    url: str | None = None,
    token: str | None = None,
    *,
    task: str | None = None,
    timeout_s: float = _DEFAULTS["timeout_s"],
    heartbeat_s: float = _DEFAULTS["heartbeat_s"],
    stop_poll_s: float = _DEFAULTS["stop_poll_s"],
) -> SinkSpec:
    """Return the sink for a model's `sinks`; without `url` or `token`, ARGUS_URL or ARGUS_TOKEN.

    `task` is the leaderboard's dataset (default: `config["task"]` of the model, else its project).
    While a run is open, a heartbeat is sent after `heartbeat_s` without other events, 300 at most,
    and Argus's stop button is read every `stop_poll_s`. Raises ConfigError for a longer silence.
    """
    if not 0 < heartbeat_s <= MAX_SILENCE_S:
        raise ConfigError(
            f"heartbeat_s must be above 0 and at most {MAX_SILENCE_S:g}, got {heartbeat_s!r}",
            "Argus marks a batch without events for 15 minutes as stalled.",
        )

    def create() -> Sink:
        where = url or os.environ.get("ARGUS_URL")
        if not where:
            raise ConfigError(
                "the sink 'argus' has no server",
                "Set ARGUS_URL and ARGUS_TOKEN, or give sinks=[argus_sink(url=..., token=...)].",
            )
        if not where.startswith(("http://", "https://")):
            raise ConfigError(
                f"the sink 'argus' has a server {where!r}, which is not a URL",
                "Set ARGUS_URL, or give url=, such as https://argus.example.com.",
            )
        from art_argus.client import ArgusClient
        from art_argus.sink import ArgusSink

        client = ArgusClient.to(where, token or os.environ.get("ARGUS_TOKEN"), timeout_s)
        return ArgusSink(client=client, task=task, heartbeat_s=heartbeat_s, stop_poll_s=stop_poll_s)

    given = {
        "url": url,
        "task": task,
        "timeout_s": timeout_s,
        "heartbeat_s": heartbeat_s,
        "stop_poll_s": stop_poll_s,
    }
    return SinkSpec(
        name="argus",
        create=create,
        summary="an Argus leaderboard: curves while the run goes on, results at its end",
        default=bool(url or os.environ.get("ARGUS_URL")),
        options={k: v for k, v in given.items() if v != _DEFAULTS.get(k)},
        factory=argus_sink,
    )


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default one if ARGUS_URL is set."""
    return [argus_sink()]


@hookimpl
def art_metrics() -> list[MetricSpec]:
    """Offer the section `system`, whose megabytes Argus shows."""
    texts = {"gpu_memory_mb": "in use", "gpu_memory_peak_mb": "in use, at its peak"}
    return [
        MetricSpec(
            key=f"system/{name}",
            unit="MB",
            help=f"device memory {what}",
            combine="last",
            direction="lower",
        )
        for name, what in texts.items()
    ]


class HasRunDir(Protocol):
    """A model, or the `RunInfo` of a sink."""

    @property
    def run_dir(self) -> Path:
        """The run's directory."""


def stop_requested(model: HasRunDir) -> bool:
    """Return whether Argus's stop button was pressed since the model's run was opened."""
    return flag_of(model).exists()


def flag_of(model: HasRunDir) -> Path:
    """Return the file that exists once a stop was requested."""
    return model.run_dir / "sinks" / "argus.stop"
