"""What one process really holds: the kernel's count of its resident pages (Linux), a GPU's allocator."""

from __future__ import annotations

from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The highest number of bytes between its making and `peak`, above what there was at its making."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            CLEAR.write_text("5")  # sets the high-water mark back to what is resident now
            self._before = _status("VmRSS")

    def peak(self) -> int:
        now = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")
        return now - self._before


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
