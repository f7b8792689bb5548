"""What art-tinker offers to art-core: the backend. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from art_core import BackendSpec, Bill, hookimpl


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the backend `tinker`."""
    return [
        BackendSpec(
            name="tinker",
            create="art_tinker.backend:TinkerBackend",
            summary="trains and samples with Thinking Machines' Tinker, priced by the token",
            bill=bill,
        )
    ]


def bill(run_dir: Path) -> Bill:
    """Ask Tinker what it billed for a run: `art costs RUN --reconcile`."""
    from art_tinker.billing import bill_of

    return bill_of(run_dir)
