"""The connection of this process to a cluster, and the resources of a model in it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from art_core import BackendError
from art_ray.options import RayOptions

log = logging.getLogger("art_ray")
_lock = threading.Lock()
_users = 0
"""Backends that use a connection which one of them made."""


def connect(options: RayOptions) -> bool:
    """Connect to a cluster, unless this process is connected. Return whether `disconnect` is to be
    called. BackendError if there is no cluster at the address.
    """
    global _users  # noqa: PLW0603
    with _lock:
        if ray.is_initialized() and not _users:
            return False
        if not ray.is_initialized():
            settings: dict[str, Any] = {"logging_level": logging.WARNING}
            if options.address is not None:
                settings["address"] = options.address
            if options.runtime_env is not None:
                settings["runtime_env"] = dict(options.runtime_env)
            try:
                ray.init(**settings)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise BackendError(
                    f"no Ray cluster at {options.address or 'this machine'}: {error}",
                    "`ray start --head` starts one; give its address, or leave address out for a "
                    "new one on this machine.",
                ) from error
        _users += 1
        return True


def disconnect() -> None:
    """Disconnect, if no other backend uses the connection."""
    global _users  # noqa: PLW0603
    with _lock:
        _users -= 1
        if _users == 0:
            ray.shutdown()


class Reservation:
    """A placement group: the bundles of a model's trainer and engines, reserved together."""

    def __init__(self, bundles: Sequence[Mapping[str, float]], strategy: str) -> None:
        self._bundles = [dict(bundle) for bundle in bundles]
        self._group = placement_group(self._bundles, strategy=strategy)

    def wait(self, timeout_s: float) -> None:
        """Wait until the resources are reserved; BackendError with what is missing."""
        began = time.monotonic()
        if self._group.wait(min(timeout_s, 10.0)):
            return
        log.warning("waiting for resources of the cluster: %s", self._wanted())
        if not self._group.wait(max(timeout_s - (time.monotonic() - began), 0.0)):
            self.release()
            raise BackendError(
                f"the cluster did not have the resources within {timeout_s:g} s: {self._wanted()}",
                "Add nodes, or ask for less in trainer={...} and engines={...}.",
            )

    def scheduling(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        """Return the scheduling strategy of an actor in a bundle."""
        return PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=bundle
        )

    def release(self) -> None:
        """Give the resources back."""
        remove_placement_group(self._group)

    def _wanted(self) -> str:
        available = {
            name: amount
            for name, amount in ray.available_resources().items()
            if not name.startswith(("node:", "memory", "object_store"))
        }
        return f"asked for {self._bundles}, free are {available}"
