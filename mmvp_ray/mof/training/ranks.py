"""Ranks: which of the processes that train this one is, and the sums over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those that train together; alone by default, without a process group.

    Attributes:
        rank: From 0.
        size: Processes.
        device: Where this one computes: "cpu", or "cuda:0".
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64; every rank must call it."""
        if self.size == 1:
            return [float(value) for value in values]
        import torch
        import torch.distributed as dist

        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def from_first(self, value: Any) -> Any:
        """What rank 0 has, on every rank; must be picklable."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.torch_device())
        return box[0]

    def torch_device(self) -> torch.device:
        """The device as torch's object."""
        import torch

        return torch.device(self.device)
