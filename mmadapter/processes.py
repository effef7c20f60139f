"""The processes of one run: who this one is, and the few things they say to each other (design decision 5).

Every engine, the loop, evaluation and the run folder ask here; nobody reads RANK or SLURM_PROCID themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among `count`, numbered from 0. All methods are collective: every process calls them, in order."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def is_first(self) -> bool:
        """Whether this process owns the run folder, the terminal and the boards."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(tensor)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether one of the processes has `flag`."""
        return self.sum([float(flag)])[0] > 0

    def broadcast(self, value: Any) -> Any:
        """What the first process has, on every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What every process has, by number, on every process."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()


_here = Processes()


def here() -> Processes:
    """This process; alone unless `join` has found others."""
    return _here


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
