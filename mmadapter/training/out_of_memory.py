"""What a run says when memory runs out, on a GPU or on the CPU: the peak, what it was at, the cheapest switches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from mmadapter.data.batches import Batch
from mmadapter.errors import InputError, is_out_of_memory
from mmadapter.hosts.settings import HostConf
from mmadapter.tasks.settings import TaskSettings
from mmadapter.training.loop import way_on
from mmadapter.training.memory import readable_peak
from mmadapter.training.settings import EngineConf, OptimizerConf

NAMED_SWITCHES = 3
CHANGES = "changes the result; to go on all the same: run=THIS_FOLDER resume=changed"


@dataclass(frozen=True)
class MemoryAdvice:
    """What a run says when memory runs out: made of those settings that can be switched."""

    optimizer: OptimizerConf
    host: HostConf
    engine: EngineConf
    resume: str
    world_size: int

    @contextlib.contextmanager
    def explained(self, doing: str = "", batches: Sequence[Batch] = (), smaller: Sequence[str] = ()) -> Iterator[None]:
        """Makes an InputError of running out of memory while inside: `doing` this, or on the largest of these batches.

        `smaller`: switches for what was being done, which are named before those of the whole run.
        """
        anew = f"\n{way_on(self.resume)}, and one of these." if self.resume == "never" else ""
        place = doing or batch_shape(batches)
        with explain_memory(place, lambda: [*smaller, *self.switches(in_steps=bool(batches))], anew):
            yield

    def switches(self, *, in_steps: bool) -> list[str]:
        """What still can be switched, cheapest first; what only makes training steps smaller helps `in_steps` alone."""
        switches = []
        rows = self.optimizer.micro_batch_size
        if in_steps and rows > 1:
            fewer = next(n for n in range(rows // 2, 0, -1) if self.optimizer.batch_size % n == 0)
            switches.append(f"optimizer.micro_batch_size={fewer} (the same run goes on, in more, smaller pieces)")
        if in_steps and not self.host.activation_checkpointing:
            switches.append("host.activation_checkpointing=true (the same result, about a third slower)")

        # Where the frozen weights could be instead: shared out over the processes, or beside a GPU.
        is_sharded = self.engine.stage == 3
        if is_sharded:
            switches.append(f"more than {self.world_size} processes (each keeps a smaller part of the frozen weights)")
        elif self.world_size > 1:
            switches.append(f"engine=zero3 (each of the {self.world_size} ranks keeps its part of the frozen weights)")
        elif torch.cuda.device_count() > 1:
            switches.append("engine=zero3 launch.processes=N, on N GPUs (each keeps its part of the frozen weights)")
        on_gpu = self.engine.device != "cpu" and torch.cuda.is_available()
        if on_gpu and not (is_sharded and self.engine.offload):
            switches.append("engine=zero3_offload (frozen weights and moments wait in the machine's memory; slow)")

        if self.host.dtype == "float32":
            switches.append(f"host.dtype=bfloat16 (half the frozen weights and activations; {CHANGES})")
        if in_steps:
            switches.append(f"host.max_tokens={max(8, self.host.max_tokens // 2)} (cuts long samples; {CHANGES})")
            switches.append("a smaller adapter.prompts.layers (activations are kept from the first adapted layer on)")
        switches.append("a smaller host, or a machine with more memory")
        return switches


@contextlib.contextmanager
def explain_memory(doing: str, switches: Callable[[], Sequence[str]], at_the_end: str = "") -> Iterator[None]:
    """Makes an InputError of running out of memory while inside: what was done, the peak, the cheapest `switches`."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        named = "\n  ".join(switches()[:NAMED_SWITCHES])
        raise InputError(
            f"Out of memory {doing}: the peak was {readable_peak()}. The cheapest switches:\n  {named}{at_the_end}"
        ) from error


def batch_shape(batches: Sequence[Batch]) -> str:
    """The largest micro-batch of these, in words."""
    rows, tokens = max((tuple(batch.input_ids.shape) for batch in batches), key=math.prod)
    return f"in a micro-batch of {rows} samples x {tokens} tokens"


def of_a_task(key: str, task: TaskSettings, changes: str = CHANGES) -> list[str]:
    """The switches of one evaluation, whose settings stand under `key`; `changes`: what fewer beams mean."""
    size, beams = task.batch_size, task.generation.beams
    switches = [f"{key}.batch_size={size // 2} (the same odds, fewer samples at a time)"] if size > 1 else []
    if beams > 1:
        switches.append(f"{key}.generation.beams={beams // 2} ({changes})")
    return switches
