"""What one process holds: its own pages as the kernel counts them (Linux), or a GPU's allocator."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class MemoryWatch:
    """While inside, watches this process's own memory: without the pages of files, which can be dropped; or the GPU's.

    On CPU glibc keeps freed tensors below 32 MB in its heap, where they show; MALLOC_MMAP_THRESHOLD_=1000000 in the
    environment has them returned.
    """

    def __init__(self, every_seconds: float = 0.002) -> None:
        self.grown_bytes = 0  # at the highest point, above the start
        self._every = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._on_gpu = torch.cuda.is_available()

    def __enter__(self) -> MemoryWatch:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            self._start = own_bytes()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self.grown_bytes = torch.cuda.max_memory_allocated() - self._start
        else:
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.grown_bytes = max(self.grown_bytes, own_bytes() - self._start)
            if self._ended.wait(self._every):
                return


def own_bytes() -> int:
    """Bytes of this process that belong to no file, now."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Bytes of this process in memory now, mapped files included; on a GPU, bytes of tensors there."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def peak_bytes() -> int:
    """The most that `resident_bytes` was since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def reset_peak() -> None:
    """Count the peak from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this needs Linux")


def counting_kept(function: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, int]]:
    """`function`, which returns its outcome with the bytes that its forward kept for the backward, parameters apart."""

    def counted(given: Any) -> tuple[Any, int]:
        kept: dict[int, int] = {}  # address of a storage -> its bytes: tensors that share one count once

        def pack(tensor: Tensor) -> Tensor:
            if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outcome = function(given)
        return outcome, sum(kept.values())

    return counted
