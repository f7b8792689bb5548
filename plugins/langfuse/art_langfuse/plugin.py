"""The hook of art-langfuse. What it needs to send is imported when a run opens."""

from __future__ import annotations

import os

from art_core import Sink, SinkSpec, hookimpl

KEYS = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY")


def langfuse_sink(
    base_url: str | None = None,
    *,
    public_key: str | None = None,
    secret_key: str | None = None,
    content: bool = True,
    environment: str | None = None,
    timeout_s: float = 10.0,
) -> SinkSpec:
    """Return a sink that sends each attempt to Langfuse as a trace, and each reward as a score.

    What is not given are the variables of Langfuse's own SDK: `LANGFUSE_BASE_URL`,
    `LANGFUSE_PUBLIC_KEY`, `LANGFUSE_SECRET_KEY` and `LANGFUSE_TRACING_ENVIRONMENT`. With
    `content=False`, messages and the results of tools stay.
    """

    def create() -> Sink:
        from art_langfuse.destination import Langfuse
        from art_otel.sink import TraceSink

        destination = Langfuse.at(
            base_url=base_url,
            public_key=public_key,
            secret_key=secret_key,
            environment=environment,
            timeout_s=timeout_s,
        )
        return TraceSink(destination, content)

    given = {
        "base_url": (base_url, None),
        "content": (content, True),
        "environment": (environment, None),
        "timeout_s": (timeout_s, 10.0),
    }
    return SinkSpec(
        name="langfuse",
        create=create,
        summary="a trace per attempt on Langfuse, its reward a score",
        default=all(os.environ.get(name) for name in KEYS),
        # Without the keys: another process takes them of its environment.
        options={name: value for name, (value, default) in given.items() if value != default},
        factory=langfuse_sink,
    )


@hookimpl
def art_sinks() -> list[SinkSpec]:
    """Offer the sink; it is a default one if both keys are set."""
    return [langfuse_sink()]
