"""The embedded engine: continuous batching over a transformers model, merged adapters, one worker
thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_local.engine.device_lock import DeviceLock
    from art_local.engine.engine import TransformersEngine

__all__ = ["DeviceLock", "TransformersEngine"]


def __getattr__(name: str) -> Any:
    if name == "TransformersEngine":
        from art_local.engine.engine import TransformersEngine

        return TransformersEngine
    if name == "DeviceLock":
        from art_local.engine.device_lock import DeviceLock

        return DeviceLock
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
