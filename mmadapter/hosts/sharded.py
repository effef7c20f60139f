"""A frozen host whose weights are sharded over the ranks (ZeRO-3): loaded, run and read a piece at a time.

Every rank holds its shard of each tensor. DeepSpeed's hooks gather a module's weights for the module's own forward and
release them again: all ranks must therefore run the same modules in the same order (`AdaptedModel.in_step`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmadapter.distributed.deepspeed import is_sharded, load_deepspeed, start_engine


@dataclass(frozen=True)
class Sharding:
    """That a host's weights are sharded over the ranks."""

    offload: bool = False
    """The shards lie in CPU memory, not in the GPU's."""


@contextlib.contextmanager
def loading_sharded(dtype: torch.dtype, device: torch.device | str, sharding: Sharding) -> Iterator[None]:
    """While inside, `transformers` shards every weight that it loads, as soon as it has been read.

    Rank 0 reads (memory-mapped, so that the files' pages can be dropped at any time) and sends each tensor to the
    others; peak memory of a rank is its shards and the two largest tensors. Collective.
    """
    from transformers.integrations import HfDeepSpeedConfig

    load_deepspeed(device)
    live = HfDeepSpeedConfig(deepspeed_settings(dtype, sharding.offload))  # in force as long as somebody holds it
    try:
        yield
    finally:
        del live


def deepspeed_settings(dtype: torch.dtype, offload: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration for parameters of this type; frozen ones have no gradient and no optimizer."""
    zero: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 0}
    if offload:
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


def gather_in_forward(host: nn.Module) -> None:
    """Let a sharded host run without a training engine, which brings hooks of its own (ZeRO inference)."""
    if not is_sharded(host):
        return
    # The shards lie already where `loading_sharded` has put them; the hooks bring them to the device.
    first = next(host.parameters())
    start_engine(first.device, model=host, config=deepspeed_settings(first.dtype))
