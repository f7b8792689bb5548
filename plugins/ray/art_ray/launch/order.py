"""What is launched: machines, what runs on them, and when they are given back."""

from __future__ import annotations

import re
from importlib.metadata import version

import attrs

from art_core import ConfigError

KUBERNETES = "kubernetes"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?")
START_MINUTES = 10
"""How long machines are expected to start, before their setup begins."""
ACCELERATORS = re.compile(r"([A-Za-z0-9._-]+)(?::(\d+))?")


def accelerators(text: str) -> tuple[str, int]:
    """Read the name and number of a machine's GPUs, as "H100:8"."""
    found = ACCELERATORS.fullmatch(text)
    if found is None or found[2] == "0":
        raise ConfigError(f"{text!r} names no GPUs", "Give a name and a number, such as H100:8.")
    return found[1], int(found[2] or 1)


@attrs.frozen(kw_only=True)
class Order:
    """Machines of a cloud, and what runs on them.

    - `what`: "serve" for `art serve`, "ray" for a Ray cluster.
    - `command`: what runs in a Ray cluster, from the working directory; without it the cluster
      waits for you.
    - `serve_options`: further words for `art serve`.
    - `hours`: when the work is ended, at the latest, from the begin of the setup. `idle_minutes`
      later the machines are given back.
    """

    cloud: str
    what: str = "serve"
    name: str = "art"
    region: str | None = None
    gpus: tuple[str, int] | None = None
    cpus: int | None = None
    memory_gb: int | None = None
    nodes: int = 1
    spot: bool = False
    hours: float = 24.0
    idle_minutes: int = 10
    workdir: str | None = None
    command: str | None = None
    serve_options: tuple[str, ...] = ()
    image: str | None = None
    packages: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} is no name for a cluster",
                "Use at most 42 lower-case letters, digits and hyphens, a letter first.",
            )
        if self.nodes < 1 or self.hours <= 0 or self.idle_minutes < 1:
            raise ConfigError("nodes, hours and idle minutes must be positive")
        if self.what == "serve" and self.nodes != 1:
            raise ConfigError(
                f"art serve runs on one machine, and {self.nodes} were asked for",
                "Use --what ray for several machines.",
            )
        if self.what == "serve" and self.command is not None:
            raise ConfigError("art serve is the command", "Use --what ray to run another one.")

    def bought_with(self, usd: float, usd_per_hour: float | None) -> Order:
        """Return the order with as many hours as money buys, or as it has, if these are fewer.
        ConfigError if that is not enough, or if the order does not end by itself.
        """
        if usd_per_hour is None:
            raise ConfigError(
                "the price of these machines is not known, so --max-usd has no limit to give",
                "Use --hours, or install a plugin that has the price.",
            )
        if self.waits_on_kubernetes:
            raise ConfigError(
                "a RayCluster of Kubernetes runs until it is deleted",
                "Give its command with --run: such a job ends, and its machines with it.",
            )
        minutes, idle = usd / usd_per_hour * 60, START_MINUTES + self.idle_minutes
        if not minutes > idle:
            raise ConfigError(
                f"${usd:,.2f} buys {minutes:.0f} minutes, of which {idle} are without work",
                "Raise --max-usd, lower --idle-minutes, or use fewer or cheaper machines.",
            )
        return attrs.evolve(self, hours=min(self.hours, (minutes - idle) / 60))

    @property
    def waits_on_kubernetes(self) -> bool:
        """Whether this is a Ray cluster of Kubernetes without a command."""
        return self.cloud == KUBERNETES and self.what == "ray" and self.command is None

    @property
    def needed(self) -> tuple[str, ...]:
        """The packages that are installed: those that were given, or those that run here."""
        own = ("art-ray", "ray") if self.what == "ray" else ("art-local", "art-serverless")
        return self.packages or tuple(f"{name}=={_version(name)}" for name in own)


def _version(name: str) -> str:
    return version("ray" if name == "ray" else "art-ray")
