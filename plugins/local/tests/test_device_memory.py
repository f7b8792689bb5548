"""The available memory: the host's, or a container's part of it."""

from __future__ import annotations

import pytest
import torch

from art_local.models.device_memory import device_memory, host_memory

MIB = 1 << 20


@pytest.fixture
def meminfo(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       1048576 kB\nMemFree:  1 kB\nMemAvailable:     262144 kB\n")
    return file


def test_what_the_kernel_calls_available_is_free(meminfo, tmp_path):
    found = host_memory(meminfo, tmp_path)
    assert found.free == 256 * MIB
    assert found.total > 256 * MIB


def test_a_containers_limit_counts_without_the_files_it_has_read(meminfo, tmp_path):
    (tmp_path / "memory.max").write_text(f"{200 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{150 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {90 * MIB}\ninactive_file {60 * MIB}\n")
    found = host_memory(meminfo, tmp_path)
    assert (found.total, found.free) == (200 * MIB, 110 * MIB)


def test_a_container_without_a_limit_has_the_host(meminfo, tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    assert host_memory(meminfo, tmp_path).free == 256 * MIB


def test_a_system_that_does_not_report_it_has_all_of_it_free(tmp_path):
    found = host_memory(tmp_path / "none", tmp_path)
    assert found.free == found.total > 0


def test_a_cpu_has_the_hosts_memory():
    found = device_memory(torch.device("cpu"))
    assert 0 < found.free <= found.total
