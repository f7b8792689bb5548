"""KubeRay's manifest of an order: a RayCluster, or a RayJob that runs a command in one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import Any

from art_core import BackendError, ConfigError
from art_ray.launch.order import Order

API = "ray.io/v1"
GPU_RESOURCE = "nvidia.com/gpu"
GPU_LABEL = "nvidia.com/gpu.product"
HEAD_CPUS, HEAD_GB = 2, 8


def manifest_of(order: Order) -> dict[str, Any]:
    """Return the manifest: with a command a RayJob, whose cluster ends with it."""
    cluster = _cluster(order)
    if order.command is None:
        return {
            "apiVersion": API,
            "kind": "RayCluster",
            "metadata": {"name": order.name},
            "spec": cluster,
        }
    spec = {
        "entrypoint": order.command,
        "runtimeEnvYAML": _runtime_env(order),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 60 * order.idle_minutes,
        "activeDeadlineSeconds": round(3600 * order.hours),
        "rayClusterSpec": cluster,
    }
    return {"apiVersion": API, "kind": "RayJob", "metadata": {"name": order.name}, "spec": spec}


def apply(order: Order) -> None:
    """Give the manifest to the cluster that kubectl is set to."""
    _kubectl("apply", "--filename", "-", given=json.dumps(manifest_of(order)))


def delete(name: str) -> None:
    """Delete the RayJob and the RayCluster of a name."""
    for kind in ("rayjob", "raycluster"):
        _kubectl("delete", f"{kind}.ray.io", name, "--ignore-not-found")


def _kubectl(*words: str, given: str | None = None) -> None:
    program = shutil.which("kubectl")
    if program is None:
        raise ConfigError(
            "launching on Kubernetes needs kubectl, which is not installed",
            "Install it, and KubeRay's operator in the cluster; --dry-run needs neither.",
        )
    done = subprocess.run(
        [program, *words], input=given, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise BackendError(f"kubectl {words[0]} failed: {done.stderr.strip()[-500:]}")


def _cluster(order: Order) -> dict[str, Any]:
    group = {
        "groupName": "model",
        "replicas": order.nodes,
        "minReplicas": order.nodes,
        "maxReplicas": order.nodes,
        "rayStartParams": {},
        "template": _pod("ray-worker", order, _worker_resources(order), order.gpus),
    }
    head = {"cpu": str(HEAD_CPUS), "memory": f"{HEAD_GB}Gi"}
    return {
        "rayVersion": version("ray"),
        "headGroupSpec": {
            # the model is on the others: the head is not lost with it
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod("ray-head", order, head, None),
        },
        "workerGroupSpecs": [group],
    }


def _pod(
    name: str, order: Order, resources: dict[str, str], gpus: tuple[str, int] | None
) -> dict[str, Any]:
    container = {
        "name": name,
        "image": _image(order),
        "resources": {"limits": resources, "requests": resources},
    }
    spec: dict[str, Any] = {"containers": [container]}
    if gpus is not None:
        spec["nodeSelector"] = {GPU_LABEL: gpus[0]}
    return {"spec": spec}


def _worker_resources(order: Order) -> dict[str, str]:
    found = {"cpu": str(order.cpus or 8), "memory": f"{order.memory_gb or 32}Gi"}
    if order.gpus is not None:
        found[GPU_RESOURCE] = str(order.gpus[1])
    return found


def _image(order: Order) -> str:
    """Return the image: by default Ray's own, of the Ray and the Python that run here."""
    python = "{}{}".format(*sys.version_info)
    kind = "" if order.gpus is None else "-gpu"
    return order.image or f"rayproject/ray:{version('ray')}-py{python}{kind}"


def _runtime_env(order: Order) -> str:
    lines = "\n".join(
        f"  - {package}" for package in order.needed if not package.startswith("ray==")
    )
    return f"pip:\n{lines}\n"
