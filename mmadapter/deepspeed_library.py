"""DeepSpeed without its traps: no compiler, no MPI, no log lines; on the process group of `processes.join`."""

from __future__ import annotations

import gc
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist

from mmadapter.errors import InputError
from mmadapter.processes import here

# Seen: 0.16.0 (offloaded) and 0.17.6 lose all but one of a step's micro-batches at stage 2.
OLDEST_DEEPSPEED = (0, 19)


@dataclass(frozen=True)
class Zero:
    """What an engine shares out over the processes (ZeRO paper, section 5), and what waits in the machine's memory."""

    stage: int  # 1 Adam's moments, 2 gradients too, 3 the frozen base too; 0 nothing
    offload: bool = False

    @classmethod
    def of(cls, engine: str, **more: Any) -> Self:
        """From an engine's name, such as "single", "zero2" or "zero3_offload"."""
        stage = int(engine.removeprefix("zero")[0]) if engine.startswith("zero") else 0
        return cls(stage, engine.endswith("_offload"), **more)


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
            "Mend: pip install 'deepspeed>=0.19', or engine=single"
        ) from error
    if tuple(int(part) for part in deepspeed.__version__.split(".")[:2]) < OLDEST_DEEPSPEED:
        raise InputError(
            f"deepspeed {deepspeed.__version__} is too old for engine=zero...; needed is 0.19 or newer. "
            "Mend: pip install -U deepspeed"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("LOCAL_RANK", str(here().local_rank))  # read by DeepSpeed
    # Shared-memory collectives on CPU: there is no setting, and they are compiled at the start, or fail without g++.
    deepspeed.ops.__compatible_ops__ = {}  # whole: a look at the table tries a compiler on everything, loudly
    _forget_former_group(deepspeed)
    deepspeed.init_distributed("nccl" if kind == "cuda" else "gloo", auto_mpi_discovery=False)
    return deepspeed


def start_engine(device: torch.device | str, **arguments: Any) -> Any:
    """What `deepspeed.initialize` makes of the arguments, on the processes that are there, until `end_engines`."""
    engine, *_ = load_deepspeed(device).initialize(**arguments)
    _engines.append(engine)
    return engine


def end_engines() -> None:
    """Ends all engines of this process and empties the shared parameters of their models, which are of no use then.

    DeepSpeed itself would keep them as long as the process lives, beside those of the next model: in hooks, in a list
    of modules, and in what one of its methods remembers.
    """
    while _engines:
        engine = _engines.pop()
        engine.destroy()
        for holder in (engine.basic_optimizer, engine.optimizer):  # of moments and gradients; hooks keep them
            if holder is not None:
                vars(holder).clear()
        for parameter in engine.module.parameters():
            if hasattr(parameter, "ds_tensor"):
                parameter.ds_tensor.data = parameter.data = parameter.data.new_empty(0)
    if "deepspeed.runtime.zero.parameter_offload" in sys.modules:
        sys.modules["deepspeed.runtime.zero.parameter_offload"].FWD_MODULE_STACK.clear()
    gc.collect()


_engines: list[Any] = []
_group: Any = None  # torch's, at the last call


def _forget_former_group(deepspeed: Any) -> None:
    """DeepSpeed keeps the process group of a run that this process has left; the next one has another."""
    global _group
    if _group is not None and _group is not dist.group.WORLD:
        deepspeed.comm.comm.cdb = None
        deepspeed.utils.groups._WORLD_GROUP = None
    _group = dist.group.WORLD
