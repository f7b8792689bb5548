"""SkyPilot's task of an order. The task is plain values; SkyPilot is imported to launch it."""

from __future__ import annotations

import importlib.util
import shlex
from typing import Any

from art_core import BackendError, ConfigError
from art_ray.launch.order import KUBERNETES, Order

PORT = 8080
RAY_PORT = 6379
"""SkyPilot has a Ray cluster of its own, on port 6380."""
PYTHON, BEGAN = "~/art-env/bin", "~/art-began"
MISSING = ConfigError(
    "launching needs SkyPilot, which is not installed",
    "pip install skypilot, in an environment without art-wandb, whose packages do not fit beside "
    "it; then run `sky check`. --dry-run needs neither.",
)


def task_of(order: Order) -> dict[str, Any]:
    """Return the task, as SkyPilot reads it from a YAML file."""
    task: dict[str, Any] = {"name": order.name, "resources": _resources(order)}
    if order.nodes > 1:
        task["num_nodes"] = order.nodes
    if order.workdir is not None:
        task["workdir"] = order.workdir
    task["setup"] = _setup(order)
    task["run"] = _serve(order) if order.what == "serve" else _ray(order)
    return task


def validated(task: dict[str, Any]) -> Any:
    """Return SkyPilot's own task; ConfigError if SkyPilot is missing or refuses it."""
    if importlib.util.find_spec("sky") is None:
        raise MISSING
    import sky

    try:
        return sky.Task.from_yaml_config(task)
    except (TypeError, ValueError, sky.exceptions.InvalidSkyPilotConfigError) as error:
        raise ConfigError(f"SkyPilot refuses the task: {error}") from error


def launch(order: Order) -> str:
    """Launch an order's machines, show SkyPilot's log, and return the cluster's name.

    They are given back when they were idle for `idle_minutes`: SkyPilot on the machines sees to it,
    also if this machine is off.
    """
    task = validated(task_of(order))
    import sky

    try:
        request = sky.launch(
            task,
            cluster_name=order.name,
            idle_minutes_to_autostop=order.idle_minutes,
            down=True,
        )
        sky.stream_and_get(request)
    except Exception as error:
        raise BackendError(
            f"SkyPilot did not launch {order.name!r}: {type(error).__name__}: {error}",
            f"`sky status` shows what is left of it; art launch --down {order.name} gives it back.",
        ) from error
    return order.name


def tear_down(name: str) -> None:
    """Give a cluster's machines back now."""
    if importlib.util.find_spec("sky") is None:
        raise MISSING
    import sky

    try:
        sky.stream_and_get(sky.down(name))
    except Exception as error:
        raise BackendError(
            f"SkyPilot did not give {name!r} back: {type(error).__name__}: {error}",
            "`sky status` shows its state. Machines that still run cost money.",
        ) from error


def _resources(order: Order) -> dict[str, Any]:
    infra = order.cloud if order.region is None else f"{order.cloud}/{order.region}"
    found: dict[str, Any] = {"infra": infra}
    if order.gpus is not None:
        name, count = order.gpus
        found["accelerators"] = f"{name}:{count}"
    if order.cpus is not None:
        found["cpus"] = f"{order.cpus}+"
    if order.memory_gb is not None:
        found["memory"] = f"{order.memory_gb}+"
    if order.spot:
        found["use_spot"] = True
    if order.image is not None:
        found["image_id"] = f"docker:{order.image}"
    if order.cloud != KUBERNETES:
        found["disk_size"] = 256
    return found


def _setup(order: Order) -> str:
    packages = " ".join(shlex.quote(package) for package in order.needed)
    install = f"timeout {_seconds(order)} {PYTHON}/pip install --quiet {packages}"
    return f"date +%s > {BEGAN}\npython3 -m venv ~/art-env\n{install}\n"


def _serve(order: Order) -> str:
    words = " ".join(map(shlex.quote, order.serve_options))
    command = f"{PYTHON}/art serve --host 127.0.0.1 --port {PORT} {words}".rstrip()
    return f"{_left(order)}{_limited(command)}\n"


def _ray(order: Order) -> str:
    """Return the commands of each machine: the first one runs the head and the command, and the
    others leave when the head does.
    """
    command = order.command or "sleep infinity"
    limited = _limited(f"bash -c {shlex.quote(command)}")
    return f"""\
{_left(order)}\
export PATH={PYTHON}:$PATH RAY_USAGE_STATS_ENABLED=0
HEAD=$(echo "$SKYPILOT_NODE_IPS" | head -n1):{RAY_PORT}
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then
  until ray status --address $HEAD >/dev/null 2>&1; do sleep 2; done
  ray start --address $HEAD --block || true
  exit 0
fi
ray start --head --port {RAY_PORT} --block &
RAY_HEAD=$!
until ray status --address $HEAD >/dev/null 2>&1; do sleep 2; done
RAY_ADDRESS=$HEAD {limited}
STATUS=$?
kill $RAY_HEAD
wait $RAY_HEAD
exit $STATUS
"""


def _seconds(order: Order) -> int:
    return max(1, round(order.hours * 3600))


def _left(order: Order) -> str:
    """Return commands that compute the seconds which are left, since the begin of the setup."""
    return f"""\
LEFT=$(( {_seconds(order)} + $(cat {BEGAN} || date +%s) - $(date +%s) ))
[ "$LEFT" -gt 0 ] || {{ echo "the hours of this launch are over" >&2; exit 1; }}
"""


def _limited(command: str) -> str:
    return f"timeout --kill-after=60 $LEFT {command}"
