"""What one process holds: its own pages as the kernel counts them (Linux), or a GPU's allocator."""

from __future__ import annotations

import threading
from pathlib import Path

import torch


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
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")
