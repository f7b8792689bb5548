"""The plugin's hooks: the backend `tinker`. Imports stay light."""

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
    """Return Tinker's bill of a run, for `art costs RUN --reconcile`."""
    from art_tinker.billing import bill_of

    return bill_of(run_dir)
