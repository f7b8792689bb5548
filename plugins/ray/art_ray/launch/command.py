"""`art launch`: machines of a cloud with `art serve` or a Ray cluster on them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from art_core import CommandSpec, ConfigError, Plugins, Record
from art_ray.launch.order import KUBERNETES, START_MINUTES, Order, accelerators

if TYPE_CHECKING:
    from art_ray.launch.prices import HourlyPrice

HELP = """\
Clouds are launched through SkyPilot (`sky check` shows which ones you can use), Ray clusters of
Kubernetes through KubeRay's operator and kubectl. --dry-run prints the task or the manifest with
its hourly price, and needs neither.

The work ends after --hours at the latest, and before --max-usd are spent at the printed price.
After --idle-minutes without work the machines are given back, also if this machine is off.
`art serve` listens on the loopback address of its machine: reach it through
`ssh -L 8080:localhost:8080 NAME`, a host that SkyPilot adds to the configuration of ssh.

examples:
  art launch --cloud aws --gpus H100:8 --dry-run
  art launch --cloud aws --gpus H100:8 --max-usd 100 --dry-run
  art launch --cloud lambda --gpus A100:1 --name smol -- --backend local -o lora_rank=32
  art launch --cloud gcp --what ray --gpus H100:8 --nodes 4 --run "python train.py" --workdir .
  art launch --cloud kubernetes --what ray --gpus NVIDIA-H100-80GB-HBM3:8 --nodes 2 --dry-run
  art launch --cloud aws --down smol
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    option = parser.add_argument
    option("--cloud", required=True, metavar="NAME", help="as `sky check` lists, or kubernetes")
    option("--what", choices=("serve", "ray"), default="serve", help="what runs (%(default)s)")
    option("--name", default="art", metavar="NAME", help="of the cluster (%(default)s)")
    option("--gpus", metavar="NAME:N", help="GPUs of each machine, such as H100:8")
    option("--cpus", type=int, metavar="N", help="CPUs of each machine, at least")
    option("--memory-gb", type=int, metavar="N", help="memory of each machine, at least")
    option("--nodes", type=int, default=1, metavar="N", help="machines (%(default)s)")
    option("--region", metavar="NAME", help="the cheapest by default")
    option("--spot", action="store_true", help="machines that the cloud may take back")
    option("--hours", type=float, default=24.0, metavar="N", help="end after (%(default)g)")
    option("--idle-minutes", type=int, default=10, metavar="N", help="then give back (%(default)s)")
    option("--max-usd", type=float, metavar="N", help="end when so much is spent, at that price")
    option("--workdir", metavar="DIR", help="a directory to copy there")
    option("--run", metavar="COMMAND", dest="command", help="of --what ray")
    option("--image", metavar="NAME", help="a container image")
    option(
        "--package", action="append", default=[], metavar="REQUIREMENT",
        help="what pip installs there (art, in this version)",
    )  # fmt: skip
    option("--dry-run", action="store_true", help="print what would be launched, and its price")
    option("--down", metavar="NAME", help="give the machines of a cluster back now")
    option("words", nargs="*", metavar="-- OPTION", help="further options of art serve")


def order_of(arguments: argparse.Namespace) -> Order:
    """Return the order of a command line."""
    return Order(
        cloud=arguments.cloud.lower(),
        what=arguments.what,
        name=arguments.name,
        region=arguments.region,
        gpus=None if arguments.gpus is None else accelerators(arguments.gpus),
        cpus=arguments.cpus,
        memory_gb=arguments.memory_gb,
        nodes=arguments.nodes,
        spot=arguments.spot,
        hours=arguments.hours,
        idle_minutes=arguments.idle_minutes,
        workdir=arguments.workdir,
        command=arguments.command,
        serve_options=tuple(arguments.words),
        image=arguments.image,
        packages=tuple(arguments.package),
    )


def run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Record | str]:
    """Yield what is launched and its price; launch it, unless it is a dry run."""
    from art_ray.launch import kuberay, skypilot
    from art_ray.launch.prices import hourly_price

    cloud = arguments.cloud.lower()
    if arguments.down is not None:
        on_kuberay = cloud == KUBERNETES and arguments.what == "ray"
        (kuberay.delete if on_kuberay else skypilot.tear_down)(arguments.down)
        yield Record({"name": arguments.down, "down": True}, [f"{arguments.down} is given back"])
        return
    order = order_of(arguments)
    if order.what == "ray" and order.serve_options:
        raise ConfigError(
            f"{order.serve_options[0]!r} is for art serve", 'Give a command: --run "...".'
        )
    price = hourly_price(order, plugins)
    if arguments.max_usd is not None:
        order = order.bought_with(arguments.max_usd, price.usd)
    on_kuberay = order.cloud == KUBERNETES and order.what == "ray"
    document = kuberay.manifest_of(order) if on_kuberay else skypilot.task_of(order)
    hours = None if order.waits_on_kubernetes else _most_hours(order)
    values = {
        "name": order.name,
        "kind": document.get("kind", "SkyPilot task"),
        "usd_per_hour": price.usd,
        "price_source": price.source,
        "most_usd": None if price.usd is None or hours is None else price.usd * hours,
        "document": document,
        "launched": not arguments.dry_run,
    }
    lines = [*as_yaml(document).splitlines(), *_price_lines(order, price, hours)]
    if arguments.max_usd is not None:
        lines.append(_bought_line(arguments.max_usd, price, order))
    yield Record(values, lines)
    if arguments.dry_run:
        return
    if on_kuberay:
        kuberay.apply(order)
    else:
        skypilot.launch(order)
    yield _next(order, on_kuberay=on_kuberay)


def _most_hours(order: Order) -> float:
    return order.hours + order.idle_minutes / 60


def _price_lines(order: Order, price: HourlyPrice, hours: float | None) -> list[str]:
    if price.usd is None:
        return [f"# price per hour: unknown ({price.source})"]
    lines = [
        f"# price per hour: ${price.usd:,.2f} ({price.source}; the cloud's own may differ)",
        "# it runs until you give it back: --down",
    ]
    if hours is not None:
        until = f"{order.hours:g} hours and {order.idle_minutes} minutes"
        lines[1] = f"# at most {until}: ${price.usd * hours:,.2f}"
    return lines


def _bought_line(usd: float, price: HourlyPrice, order: Order) -> str:
    bought = usd / (price.usd or 1.0) * 60
    return (
        f"# ${usd:,.2f} buys {bought:,.0f} minutes: {START_MINUTES} to start, "
        f"{order.hours * 60:,.0f} of setup and work, {order.idle_minutes} until they are given back"
    )


def as_yaml(document: Any) -> str:
    """Return a document as YAML: scripts as blocks of lines, nothing by reference."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, width=100)
    return dumped


def _next(order: Order, *, on_kuberay: bool) -> str:
    down = ["art", "launch", "--cloud", order.cloud, "--down", order.name]
    if on_kuberay:
        shown, down = "kubectl get pods", [*down, "--what", "ray"]
    elif order.what == "serve":
        shown = f"ssh -L 8080:localhost:8080 {order.name}"
    else:
        shown = f"sky logs {order.name}"
    return f"next: {shown}; {shlex.join(down)} gives the machines back"


COMMAND = CommandSpec(
    name="launch",
    summary="start machines of a cloud with art serve or a Ray cluster on them",
    create=add_arguments,
    run=run,
    help=HELP,
)
