"""A Ray cluster of several machines, as processes of this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

SMALL = {"object_store_memory": 150 * 2**20}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head with one CPU and two machines with two CPUs each; deaths are noticed within seconds."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 0}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick, **SMALL}
    found = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        add_machine(found)
    yield found
    found.shutdown()


def add_machine(cluster: Any) -> None:
    cluster.add_node(num_cpus=2, **SMALL)
