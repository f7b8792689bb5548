"""What art-tinker offers to art-core: the backend. Nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path

from art_core import Backend, BackendSpec, Bill, hookimpl


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the backend `tinker`."""
    return [
        BackendSpec(
            name="tinker",
            create=create_backend,
            summary="trains and samples with Thinking Machines' Tinker, priced by the token",
            bill=bill,
        )
    ]


def create_backend(
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    lora_rank: int = 32,
    seed: int | None = None,
    context_length: int | None = None,
    tokenizer: str | None = None,
    cached_prefill_per_million: float | None = None,
    connect_timeout_s: float = 30.0,
    register_timeout_s: float = 600.0,
    step_timeout_s: float = 3600.0,
    request_timeout_s: float = 600.0,
) -> Backend:
    """Make the backend (options: `TinkerBackend`)."""
    from art_tinker.backend import TinkerBackend

    return TinkerBackend(
        base_url=base_url,
        api_key=api_key,
        lora_rank=lora_rank,
        seed=seed,
        context_length=context_length,
        tokenizer=tokenizer,
        cached_prefill_per_million=cached_prefill_per_million,
        connect_timeout_s=connect_timeout_s,
        register_timeout_s=register_timeout_s,
        step_timeout_s=step_timeout_s,
        request_timeout_s=request_timeout_s,
    )


def bill(run_dir: Path) -> Bill:
    """Ask Tinker what it billed for a run: `art costs RUN --reconcile`."""
    from art_tinker.billing import bill_of

    return bill_of(run_dir)
