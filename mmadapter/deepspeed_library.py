"""DeepSpeed without its traps: no compiler, no MPI, no log lines; on the process group of `processes.join`."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist

from mmadapter.errors import InputError
from mmadapter.processes import here

OLDEST_DEEPSPEED = (0, 16)


def load_deepspeed(device: torch.device | str) -> Any:
    """The library, connected with the other processes and told to use the device.

    Raises InputError where it is missing or too old.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it takes a GPU that it finds
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(
            f"engine=zero... needs DeepSpeed, which cannot be imported ({error}). "
            "Mend: pip install 'deepspeed>=0.16', or engine=single"
        ) from error
    if tuple(int(part) for part in deepspeed.__version__.split(".")[:2]) < OLDEST_DEEPSPEED:
        raise InputError(
            f"deepspeed {deepspeed.__version__} is too old for engine=zero...; needed is 0.16 or newer. "
            "Mend: pip install -U deepspeed"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("LOCAL_RANK", str(here().local_rank))  # read by DeepSpeed
    # Shared-memory collectives on CPU: there is no setting, and they are compiled at the start, or fail without g++.
    deepspeed.ops.__compatible_ops__ = {}  # whole: a look at the table tries a compiler on everything, loudly
    _forget_former_group(deepspeed)
    deepspeed.init_distributed("nccl" if kind == "cuda" else "gloo", auto_mpi_discovery=False)
    return deepspeed


_group: Any = None  # torch's, at the last call


def _forget_former_group(deepspeed: Any) -> None:
    """DeepSpeed keeps the process group of a run that this process has left; the next one has another."""
    global _group
    if _group is not None and _group is not dist.group.WORLD:
        deepspeed.comm.comm.cdb = None
        deepspeed.utils.groups._WORLD_GROUP = None
    _group = dist.group.WORLD
