"""The hook of art-trackio. Trackio is imported when a run opens."""

from __future__ import annotations

import os

from art_core import Sink, SinkSpec, hookimpl


def trackio_sink(project: str | None = None) -> SinkSpec:
    """Return a Trackio sink in `TRACKIO_DIR`; `project` is the model's unless given."""

    def create() -> Sink:
        from art_trackio.sink import TrackioSink

        return TrackioSink(project)

    return SinkSpec(
        name="trackio",
        create=create,
        summary="a run in Trackio's database, for `trackio show`",
        default="TRACKIO_DIR" in os.environ,
        options={} if project is None else {"project": project},
        factory=trackio_sink,
    )


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default one if TRACKIO_DIR is set."""
    return [trackio_sink()]
