"""What a run says when memory runs out, on a GPU or on the CPU: the peak, what it was at, the cheapest switches."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mmadapter.deepspeed_library import Zero
from mmadapter.errors import InputError
from mmadapter.processes import here
from mmadapter.training.memory import readable_peak

NAMED_SWITCHES = 3


@contextlib.contextmanager
def memory_explained(conf: Any, doing: str = "", batches: Sequence[Any] = ()) -> Iterator[None]:
    """Makes an InputError of running out of memory while inside: `doing` this, or on the largest of these batches."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        place = doing or batch_shape(batches)
        switches = "\n  ".join(cheapest_switches(conf, loading=not batches)[:NAMED_SWITCHES])
        raise InputError(
            f"Out of memory {place}: the peak was {readable_peak()}. The cheapest switches:\n  {switches}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = ("allocate memory", "out of memory")  # PyTorch on a CPU; NCCL
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def batch_shape(batches: Sequence[Any]) -> str:
    """The largest micro-batch of these, in words."""
    rows, tokens = max((tuple(batch.input_ids.shape) for batch in batches), key=math.prod)
    return f"in a micro-batch of {rows} samples x {tokens} tokens"


def cheapest_switches(conf: Any, *, loading: bool) -> list[str]:
    """What still can be switched, cheapest first; `loading`: no batch was there yet, so that no smaller one helps."""
    switches = [] if loading else _of_activations(conf.optimizer, conf.host)
    switches += _of_the_engine(conf.engine)
    if conf.host.dtype == "float32":
        switches.append("host.dtype=bfloat16 (half the frozen weights and activations)")
    if not loading:
        switches.append(f"host.max_tokens={max(8, conf.host.max_tokens // 2)} (cuts long samples)")
        switches.append("a smaller adapter.layers (activations are kept only from the first adapted layer on)")
    switches.append("a smaller host, or a machine with more memory")
    return switches


def _of_activations(optimizer: Any, host: Any) -> list[str]:
    """The switches that give the same result."""
    switches, rows = [], optimizer.micro_batch_size
    if rows > 1:
        switches.append(f"optimizer.micro_batch_size={max(1, rows // 2)} (the same result, in more, smaller pieces)")
    if not host.activation_checkpointing:
        switches.append("host.activation_checkpointing=true (the same result, about a third slower)")
    return switches


def _of_the_engine(engine: Any) -> list[str]:
    """Where the frozen weights could be instead: shared out over the processes, or beside a GPU."""
    on_gpu = engine.device != "cpu" and torch.cuda.is_available()
    zero = Zero.of(engine.name)
    sharded = zero.stage == 3
    switches = []
    if sharded:
        switches.append(f"more than {here().count} processes (each keeps a smaller part of the frozen weights)")
    elif here().count > 1:
        switches.append(f"engine=zero3 (each of the {here().count} processes keeps its part of the frozen weights)")
    elif torch.cuda.device_count() > 1:
        switches.append("engine=zero3 launch.processes=N, on N GPUs (each keeps its part of the frozen weights)")
    if on_gpu and not (sharded and zero.offload):
        switches.append("engine=zero3_offload (frozen weights and moments wait in the machine's memory; slow)")
    return switches
