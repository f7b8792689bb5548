"""The end of a training that a sink asked for: before a step, once the newest has a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from art_core.base.errors import StoppedError
from art_core.sinks.protocol import StopRequest

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel


async def check_stop(model: TrainableModel, stop: StopRequest) -> dict[str, Any]:
    """Raise StoppedError if a sink asked for the end. If the newest step has no checkpoint, return
    the options of one more step, which makes one.
    """
    if stop.by is None:
        return {}
    step = await model.get_step()
    if step and step not in {checkpoint.step for checkpoint in await model.checkpoints()}:
        return {"save_checkpoint": True}
    error = StoppedError(
        f"{stop.by} stopped the training of {model.name!r} after step {step}: {stop.reason}",
        "Change what it names, and train again: the run goes on at this step.",
    )
    error.status = f"stopped by {stop.by}"
    raise error
