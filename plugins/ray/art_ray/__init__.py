"""art-ray: the backend `ray` of art-core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_ray.rollouts import remote_rollout

__all__ = ["remote_rollout"]


def __getattr__(name: str) -> Any:
    if name != "remote_rollout":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from art_ray.rollouts import remote_rollout

    return remote_rollout
