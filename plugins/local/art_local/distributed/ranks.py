"""The place of a process among the ranks, and what they compute together."""

from __future__ import annotations

import datetime as dt
import math
import os
from collections.abc import Sequence

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

ALIVE_S = 1800.0
"""Seconds that a rank waits for the others in a collective operation."""


@attrs.frozen(kw_only=True)
class Ranks:
    """A group of processes that compute in step: each calls the same methods in the same order."""

    rank: int
    count: int
    device: torch.device
    mesh: DeviceMesh

    @classmethod
    def join(cls, device: torch.device, init_method: str = "env://") -> Ranks:
        """Join the group that the variables RANK and WORLD_SIZE describe, as torchrun and Ray set
        them.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=init_method,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=dt.timedelta(seconds=ALIVE_S),
        )
        count = dist.get_world_size()
        mesh = init_device_mesh(device.type, (count,))
        return cls(rank=dist.get_rank(), count=count, device=device, mesh=mesh)

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def leave(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def broadcast(self, tensor: Tensor) -> None:
        """Give the tensor of rank 0 to all, in place."""
        dist.broadcast(tensor, 0)

    def most(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return int(self._reduced(torch.tensor([number]), dist.ReduceOp.MAX))

    def any(self, *, true: bool) -> bool:
        """Return whether it is true on one of the ranks."""
        return bool(self.most(int(true)))

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of the ranks' values, in fp64 on the CPU."""
        return self._reduced(value.detach().double().reshape(1), dist.ReduceOp.SUM).reshape(())

    def everyones(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return each of these tensors [n, ...] with those of all ranks, in fp32 on the CPU: [N,
        ...]. The tensors of one rank have the same n.
        """
        widths = [math.prod(value.shape[1:]) for value in values]
        own = [
            value.detach().float().reshape(len(value), width)
            for value, width in zip(values, widths, strict=True)
        ]
        sizes = self._each(torch.tensor([len(own[0])]))
        longest = int(sizes.max())
        padded = torch.zeros(longest, sum(widths))
        padded[: len(own[0])] = torch.cat([value.cpu() for value in own], 1)
        parts = self._each(padded)
        whole = torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)])
        found = zip(whole.split(widths, 1), values, strict=True)
        return [part.reshape(len(whole), *value.shape[1:]) for part, value in found]

    def _reduced(self, value: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        value = value.to(self.device)
        dist.all_reduce(value, op)
        return value.cpu()

    def _each(self, value: Tensor) -> Tensor:
        """Return the tensors of all ranks, stacked, on the CPU."""
        value = value.to(self.device)
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value)
        return torch.stack(parts).cpu()
