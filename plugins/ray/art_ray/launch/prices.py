"""The hourly price of an order, by the price books of the installed plugins."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from art_core import Plugins
from art_core.reports.reprice import gpu_price
from art_ray.launch.order import Order

DRIVER_NAMES = {
    "A100": "A100-SXM4-40GB",
    "A100-80GB": "A100-SXM4-80GB",
    "A10": "A10",
    "H100": "H100 80GB HBM3",
    "H100-SXM": "H100 80GB HBM3",
}
"""Names of SkyPilot's catalogue, and of the same GPU by its driver, which price books know."""


@attrs.frozen(kw_only=True)
class HourlyPrice:
    """US dollars for an hour of all machines, and where the price is from; None if no price book
    has one. A list price: the cloud's own may differ.
    """

    usd: float | None
    source: str


def hourly_price(order: Order, plugins: Plugins) -> HourlyPrice:
    """Return the price of the GPUs of an order; machines without GPUs have none in price books."""
    if order.gpus is None:
        return HourlyPrice(usd=None, source="price books have GPUs only")
    name, count = order.gpus
    for device in _devices(name):
        usd, source = gpu_price(plugins, device)
        if usd is not None:
            return HourlyPrice(usd=usd * count * order.nodes, source=source)
    return HourlyPrice(usd=None, source=f"no price book has {name!r}")


def _devices(name: str) -> Iterator[str]:
    """Yield the names by which price books may know a GPU of SkyPilot or Kubernetes."""
    bare = name.removeprefix("NVIDIA-")
    yield DRIVER_NAMES.get(bare.upper(), bare)
    yield bare.replace("-", " ")
