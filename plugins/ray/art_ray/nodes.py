"""The nodes that hold parts of a model, and what they are charged."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs

from art_core import GpuTime

OTHERS = "*"
ACCELERATOR = "accelerator_type:"


@attrs.frozen(kw_only=True)
class ActorPlace:
    """The node and the process of an actor, the name of its device, its number of GPUs there.

    `kinds` are the names by which the node may have a price: labels, accelerators, custom
    resources, its address.
    """

    node_id: str
    address: str
    pid: int
    device: str
    gpus: float
    kinds: tuple[str, ...] = ()


def place_here() -> ActorPlace:
    """Return the place of the actor that runs this."""
    import ray

    context = ray.get_runtime_context()
    node_id, gpus = context.get_node_id(), context.get_assigned_resources().get("GPU", 0)
    return ActorPlace(
        node_id=node_id,
        address=ray.util.get_node_ip_address(),
        pid=os.getpid(),
        device=_device_name() if gpus else "cpu",
        gpus=gpus,
        kinds=kinds_of(next((node for node in ray.nodes() if node["NodeID"] == node_id), {})),
    )


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "gpu"


def kinds_of(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names by which one of Ray's nodes may have a price, the most exact ones first."""
    labels = [str(value) for value in (node.get("Labels") or {}).values()]
    resources = [str(name) for name in (node.get("Resources") or {})]
    accelerators = [
        name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)
    ]
    return (str(node.get("NodeManagerAddress", "")), *labels, *accelerators, *resources)


def device_times(
    places: Iterable[ActorPlace],
    seconds: float,
    *,
    node_usd_per_hour: float | Mapping[str, float] | None,
    gpu_usd_per_hour: float | None,
) -> list[GpuTime]:
    """Return what to charge for the nodes of a model, held for this time.

    With a price of nodes each node counts once, whatever it holds. Without one, GPUs are charged by
    their name, and a node without GPUs as one machine, if the user gave a price.
    """
    found = list(places)
    if node_usd_per_hour is not None:
        return _node_times({place.node_id: place for place in found}, seconds, node_usd_per_hour)
    gpus: dict[str, float] = defaultdict(float)
    for place in found:
        gpus[place.device] += place.gpus
    times = [
        GpuTime(
            device=device,
            count=max(1, round(count)),
            seconds=seconds,
            usd_per_hour=gpu_usd_per_hour,
        )
        for device, count in sorted(gpus.items())
        if device != "cpu"
    ]
    machines = {place.node_id for place in found if not place.gpus}
    machines -= {place.node_id for place in found if place.gpus}
    if machines and gpu_usd_per_hour is not None:
        count = len(machines)
        times.append(
            GpuTime(device="cpu", count=count, seconds=seconds, usd_per_hour=gpu_usd_per_hour)
        )
    return times


def _node_times(
    nodes: Mapping[str, ActorPlace], seconds: float, prices: float | Mapping[str, float]
) -> list[GpuTime]:
    counts: dict[tuple[str, float | None], int] = defaultdict(int)
    for place in nodes.values():
        counts[_price(place, prices)] += 1
    return [
        GpuTime(device=name, count=count, seconds=seconds, usd_per_hour=price)
        for (name, price), count in sorted(counts.items(), key=str)
    ]


def _price(place: ActorPlace, prices: float | Mapping[str, float]) -> tuple[str, float | None]:
    """Return the name and price of a node; without a price, a price book is asked by its device."""
    if not isinstance(prices, Mapping):
        return f"node ({place.device})", float(prices)
    for kind in (*place.kinds, OTHERS):
        if kind in prices:
            return f"node {kind}", float(prices[kind])
    return place.device, None


def reach_directly(url: str) -> None:
    """Let requests of this process to a URL's host pass by a proxy."""
    host = urlsplit(url).hostname or ""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [each for each in os.environ.get(name, "").split(",") if each]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, host]))


def names(places: Sequence[ActorPlace]) -> str:
    """Return the addresses of places, for a log line."""
    return ", ".join(dict.fromkeys(place.address for place in places))
