"""Memory: what a run will need, before anything is loaded, and what it has used."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmadapter.distributed.ranks import Ranks
from mmadapter.hosts.settings import HostConf
from mmadapter.model import AdaptedModel
from mmadapter.terminal import readable_bytes
from mmadapter.training.settings import EngineConf, OptimizerConf

VALUE = 4  # bytes of a float32 number: each trainable value, its start, its gradient, each of its two Adam moments
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process; activations are those of one micro-batch of full-length samples."""

    frozen: int
    trainable: int
    activations: int
    logits: int
    gathered: int = 0  # ZeRO-3: frozen weights that are whole at a time
    offloaded: int = 0  # in the machine's memory instead of the device's, not in the sum

    @property
    def total(self) -> int:
        return self.frozen + self.gathered + self.trainable + self.activations + self.logits

    def rows(self) -> list[list[str]]:
        """Lines of a table: what, how much."""
        parts = {
            "frozen weights": self.frozen,
            "trainable parameters with start, gradients and Adam moments": self.trainable,
            "activations of a micro-batch of full length": self.activations,
            "logits (all positions supervised)": self.logits,
        }
        if self.gathered:
            parts["frozen weights gathered from other processes"] = self.gathered
        parts["sum"] = self.total
        if self.offloaded:
            parts["besides, in the machine's memory (offloaded)"] = self.offloaded
        return [[name, readable_bytes(size)] for name, size in parts.items()]

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class HostShape:
    """What the estimate needs to know of the host."""

    width: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    bytes_per_value: int


def estimate(
    shape: HostShape,
    frozen_bytes: int,
    trainable_parameters: int,
    *,
    adapted_layers: int,
    tokens: int,
    longest: int,
    checkpointing: bool = False,
    eager_attention: bool = False,
    kept_by_parts: int = 0,
    engine: EngineConf,
    processes: int = 1,
    gathered: int = 0,
) -> MemoryEstimate:
    """Upper estimate of a training step on one process: `tokens` in a micro-batch, `longest` in one sample,
    `gathered` frozen parameters whole at a time under ZeRO-3.

    Kept for the backward in each adapted layer with fused attention: 6 widths + 2 intermediate widths a token, and
    `kept_by_parts` numbers in float32, which trained parts inside of the layer need for their gradients (scale, norms,
    LoRA). With activation checkpointing: one width a token, and one whole layer while it is computed again.
    """
    layer = tokens * (6 * shape.width + 2 * shape.intermediate) * shape.bytes_per_value
    layer += tokens * kept_by_parts * 4
    if eager_attention:  # scores and weights of every pair of tokens
        layer += tokens * longest * shape.heads * (shape.bytes_per_value + 4)
    if checkpointing:
        activations = layer + adapted_layers * tokens * shape.width * shape.bytes_per_value
    else:
        activations = layer * adapted_layers
    logits = tokens * shape.vocabulary * (4 + 4 + shape.bytes_per_value)
    held = stored_by(engine, processes, frozen_bytes, trainable_parameters, gathered * shape.bytes_per_value)
    return MemoryEstimate(held.frozen, held.trainable, activations, logits, held.gathered, held.offloaded)


@dataclass(frozen=True)
class Stored:
    """Bytes of one process."""

    frozen: int
    trainable: int  # with start (from which movement is measured), gradients and moments
    gathered: int = 0  # frozen weights of other processes that are here for a while
    offloaded: int = 0  # in the machine's memory instead of the device's


def stored_by(
    engine: EngineConf, processes: int, frozen: int, trainable_parameters: int, gathered_bytes: int
) -> Stored:
    """What `engine` stores on each of `processes` for a host of `frozen` bytes.

    `gathered_bytes` of the frozen weights are whole at a time under ZeRO-3, and are counted twice: DeepSpeed gathers
    into a buffer, from which it cuts the weights.

    Trainable values and their start are whole on every process; so are, for a while, the gradients of one micro-batch
    (twice) and the buffer in which DeepSpeed sums them up. Stage 1 shares out the moments, and adds a copy of the part
    of values and gradients that the process itself moves; stage 2 keeps no other gradients; stage 3 shares out the
    frozen weights, too, and has one more copy of its part of the values. docs/performance.md: as measured.
    """
    whole = VALUE * trainable_parameters
    if engine.name == "single":
        return Stored(frozen, 5 * whole)
    stage, passing = engine.stage, 3 * whole
    if stage == 0:
        return Stored(frozen, 5 * whole + passing)
    moved = (5 if stage == 3 else 4) * whole // processes
    kept = 2 * whole + passing + (whole if stage == 1 else 0)
    shared = frozen // processes if stage == 3 else frozen
    gathered = 2 * min(frozen, gathered_bytes) if stage == 3 else 0
    if not engine.offload:
        return Stored(shared, kept + moved, gathered)
    if stage == 3:
        return Stored(0, kept, gathered, shared + moved)
    return Stored(shared, kept, 0, moved)


def memory_needed(
    optimizer: OptimizerConf, host: HostConf, engine: EngineConf, processes: int, model: AdaptedModel, dtype: str
) -> MemoryEstimate:
    """The estimate for one rank of a training with these settings, for micro-batches of samples of full length.

    `model` may be on the meta device; `dtype` is that of the frozen weights.
    """
    size = BYTES[dtype]
    trainable = {id(item.parameter) for item in model.trainable_parameters()}
    stored = frozen_bytes(model.host, trainable)
    values = sum(parameter.numel() for parameter in model.host.parameters() if id(parameter) not in trainable)
    stored = max(stored, values * size) if size == 4 else min(stored, values * size)
    config = model.host.config
    return estimate(
        host_shape(config, size),
        stored,
        sum(item.parameter.numel() for item in model.trainable_parameters()),
        adapted_layers=config.num_hidden_layers - model.adapter.lowest_layer(config.num_hidden_layers),
        tokens=optimizer.micro_batch_size * model.max_tokens,
        longest=model.max_tokens,
        checkpointing=host.activation_checkpointing,
        eager_attention=host.attention == "eager",
        kept_by_parts=model.adapter.kept_per_token(),
        engine=engine,
        processes=processes,
        gathered=engine.gathered_parameters,
    )


def host_shape(config: object, bytes_per_value: int) -> HostShape:
    """Shape from a `transformers` configuration."""
    width = config.hidden_size  # type: ignore[attr-defined]
    return HostShape(
        width=width,
        intermediate=getattr(config, "intermediate_size", 4 * width),
        layers=config.num_hidden_layers,  # type: ignore[attr-defined]
        heads=config.num_attention_heads,  # type: ignore[attr-defined]
        vocabulary=config.vocab_size,  # type: ignore[attr-defined]
        bytes_per_value=bytes_per_value,
    )


def frozen_bytes(module: nn.Module, trainable: set[int]) -> int:
    """Bytes of all parameters and buffers of a module whose id is not in `trainable`."""
    tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in trainable)


def reset_peak() -> None:
    """Lets `peak_memory` count from here: a sweep on this machine runs its jobs in one process. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Bytes at the highest point so far: of this process (`host_bytes`), and of the GPU's allocator (`gpu_bytes`)."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["gpu_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def peak_of_ranks(ranks: Ranks) -> dict[str, Any]:
    """The highest of all ranks' peaks; where there are several, also each one's (`processes`). Collective."""
    of_all = ranks.gather(peak_memory())
    highest: dict[str, Any] = {name: max(peak[name] for peak in of_all) for name in of_all[0]}
    return highest | {"processes": of_all} if len(of_all) > 1 else highest


def readable_peak() -> str:
    """The peak in words."""
    peak = peak_memory()
    text = f"{readable_bytes(peak['host_bytes'])} of memory"
    return text + (f", {readable_bytes(peak['gpu_bytes'])} on the GPU" if "gpu_bytes" in peak else "")
