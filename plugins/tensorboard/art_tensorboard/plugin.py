"""The hook of art-tensorboard. TensorBoard is imported when a run opens."""

from __future__ import annotations

from pathlib import Path

from art_core import Sink, SinkSpec, hookimpl


def tensorboard_sink(logdir: str | Path | None = None) -> SinkSpec:
    """Return a TensorBoard sink: event files in `<logdir>/<project>/<name>`, by default in the
    run's own directory.
    """

    def create() -> Sink:
        from art_tensorboard.sink import TensorboardSink

        return TensorboardSink(logdir)

    return SinkSpec(
        name="tensorboard",
        create=create,
        summary="event files for TensorBoard, in the run's directory",
        default=False,
        options={} if logdir is None else {"logdir": str(Path(logdir).absolute())},
        factory=tensorboard_sink,
    )


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is used if it is named."""
    return [tensorboard_sink()]
