"""What eval.py says when memory runs out, on a GPU or on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmadapter.errors import InputError, is_out_of_memory


@contextlib.contextmanager
def memory_explained(run_conf: Any, doing: str, smaller: Sequence[str] = ()) -> Iterator[None]:
    """Makes an InputError of running out of memory while inside; `smaller`: what helps with `doing` alone, if any."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        switches = [*smaller]
        if run_conf.host.dtype == "float32":
            switches.append("host.dtype=bfloat16 (half the frozen weights and activations; the answers may differ)")
        switches.append("a machine with more memory")
        raise InputError("\n  ".join([f"Out of memory {doing}. The cheapest switches:", *switches])) from error


def smaller_task(task: Any) -> list[str]:
    """The switches of the questions that are asked."""
    size, beams = task.batch_size, task.generation.beams
    switches = [f"task.batch_size={size // 2} (fewer samples at a time)"] if size > 1 else []
    return switches + ([f"task.generation.beams={beams // 2} (other answers)"] if beams > 1 else [])
