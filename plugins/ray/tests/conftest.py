"""Fixtures: a tiny model on disk, and a cluster of three nodes on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import art_core as art

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
STORE_BYTES = 100 << 20
SYSTEM = {
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
"""A killed node is missed after seconds, and no process starts before it is needed."""


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def cluster():
    """Three nodes: this process belongs to the first, which has no room for a model."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": SYSTEM})
    try:
        for name in ("left", "right"):
            made.add_node(
                num_cpus=2, object_store_memory=STORE_BYTES, resources={"model": 8, name: 1}
            )
        ray.init(address=made.address, logging_level="WARNING")
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def one_node():
    """A cluster of this process only."""
    import ray

    ray.init(
        num_cpus=4,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        logging_level="WARNING",
        _system_config=SYSTEM,
    )
    yield
    ray.shutdown()


@pytest.fixture
def make_model(tmp_path, tiny_directory):
    """Open a run over the tiny model: `make_model(name)`."""

    def make(name="agent"):
        return art.TrainableModel(
            name=name,
            project="ray",
            base_model=str(tiny_directory),
            base_path=tmp_path,
            sinks=[],
        )

    return make
