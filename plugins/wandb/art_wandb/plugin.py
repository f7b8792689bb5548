"""What art-wandb offers to art-core. wandb is imported when a run opens, not before."""

from __future__ import annotations

import os
from typing import Any

from art_core import Sink, SinkSpec, hookimpl
from art_wandb.options import Options, has_key


def wandb_sink(**options: Any) -> SinkSpec:
    """Return a W&B sink for `sinks=[...]`; the options are the fields of `Options`.

    Raises TypeError for an option that does not exist.
    """
    chosen = Options(**options)

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
    """Offer the sink; it is a default one where a key or WANDB_MODE says that W&B is wanted."""
    return [wandb_sink()]
