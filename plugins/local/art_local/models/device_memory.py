"""The memory of a device, total and free."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import torch  # noqa: TID253

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@attrs.frozen(kw_only=True)
class DeviceMemory:
    """Bytes of a device's memory."""

    total: int
    free: int


def device_memory(device: torch.device) -> DeviceMemory:
    """Return the memory of a device; of a CPU it is the host's, within a container's limit.

    What torch has reserved on a GPU and does not use counts as free.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceMemory(total=total, free=free + unused)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return DeviceMemory(total=total, free=total - torch.mps.current_allocated_memory())
    return host_memory()


def host_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> DeviceMemory:
    """Return the host's memory. Where the system does not report what is free, all of it is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    if meminfo.is_file():
        # a line is a name, a colon, a number and the unit kB
        lines = (line.partition(":") for line in meminfo.read_text().splitlines())
        free = next((_kib(value) for name, _, value in lines if name == "MemAvailable"), total)
    limit = _number(cgroup / "memory.max")
    if limit is None or limit >= total:
        return DeviceMemory(total=total, free=free)
    used = _number(cgroup / "memory.current") or 0
    return DeviceMemory(total=limit, free=max(0, min(free, limit - used + _cached(cgroup))))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or Python means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    # the last one is cuBLAS's
    messages = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "status_alloc_failed",
    )
    return isinstance(error, RuntimeError) and any(message in text for message in messages)


def _cached(cgroup: Path) -> int:
    """Return the bytes of files that a container has read and can drop at any time."""
    stat = cgroup / "memory.stat"
    lines = stat.read_text().splitlines() if stat.is_file() else []
    pairs = (line.partition(" ") for line in lines)
    return next((int(value) for name, _, value in pairs if name == "inactive_file"), 0)


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None
