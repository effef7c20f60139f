"""Starting DeepSpeed without its traps: no compiler, no MPI, no log lines, and only what is asked for shared out."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmadapter.distributed.deepspeed import Zero, start_engine
from mmadapter.errors import InputError

FETCHED_AHEAD = 5 * 10**7  # parameters that are gathered before they are needed: DeepSpeed's own number


@dataclass(frozen=True)
class ZeroSettings(Zero):
    """How an engine shares out."""

    cpu_adam: bool = False
    gathered: int = 10**9  # frozen parameters that stage 3 keeps whole at a time, at most


def start(
    carrier: nn.Module, optimizer: torch.optim.Optimizer, settings: ZeroSettings, device: torch.device, bucket: int
) -> Any:
    """A DeepSpeed engine around `carrier`, on the process group that is there.

    Gradients of up to `bucket` elements are reduced together; 1: each parameter's alone.
    """
    return start_engine(device, model=carrier, optimizer=optimizer, config=configuration(settings, bucket))


def configuration(settings: ZeroSettings, bucket: int) -> dict[str, Any]:
    """DeepSpeed's configuration: float32 optimizer, no scaling, clipping, schedule or printing of its own."""
    zero: dict[str, Any] = {"stage": settings.stage, "reduce_bucket_size": bucket, "overlap_comm": False}
    if settings.stage == 3:
        # What stays whole is chosen by `keep_whole`, not by size.
        zero |= {"stage3_param_persistence_threshold": 0}
        zero |= {f"stage3_max_{what}": settings.gathered for what in ("live_parameters", "reuse_distance")}
        zero |= {"stage3_prefetch_bucket_size": min(settings.gathered, FETCHED_AHEAD)}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if settings.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def cpu_adam() -> Any:
    """DeepSpeed's Adam for the CPU, compiled where it has not been yet; raises InputError without a compiler."""
    if shutil.which("ninja") is None or (shutil.which("g++") is None and "CXX" not in os.environ):
        raise InputError(
            "engine.cpu_adam=true compiles DeepSpeed's CPU Adam, which needs g++ and ninja on PATH. "
            "Install them (apt install g++ ninja-build), or leave engine.cpu_adam=false."
        )
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam
