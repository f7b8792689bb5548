"""What art-local offers to art-core. Nothing heavy is imported before a backend is made."""

from __future__ import annotations

from art_core import BackendSpec, EngineCatalog, MetricSpec, ModelCatalog, hookimpl


def models() -> ModelCatalog:
    """Make the catalog behind `art models`."""
    from art_local.models import LocalCatalog

    return LocalCatalog()


def engines() -> EngineCatalog:
    """Make the catalog behind `art engines`."""
    from art_local.vllm.install import LocalEngines

    return LocalEngines()


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the local backend."""
    return [
        BackendSpec(
            name="local",
            create="art_local.entry:LocalBackend",
            summary=(
                "trains LoRA adapters (or all weights) and serves them in this "
                "process, on CPU or CUDA"
            ),
            models=models,
            engines=engines,
        )
    ]


@hookimpl
def art_metrics() -> list[MetricSpec]:
    """Describe what the vLLM server says of itself."""
    said = (
        ("running", "request", "requests that the engine's server computed at once, mean"),
        ("waiting", "request", "requests that waited in the engine's server, mean"),
        ("kv_cache_use", "share", "cache of keys and values in use in the server, mean"),
        ("prefix_hit_rate", "share", "prompt tokens that the server had cached already"),
        ("generation_tok_per_s", "token/s", "sampled tokens a second while the server ran"),
        ("restarts", "restart", "times that the server was started again"),
    )
    return [
        MetricSpec(
            key=f"throughput/engine_{name}",
            unit=unit,
            help=meaning,
            combine="sum" if name == "restarts" else "mean",
        )
        for name, unit, meaning in said
    ]
