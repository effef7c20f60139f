"""Whether a process of this machine still is the one that was noted; numbers are used again."""

from __future__ import annotations

import os
from pathlib import Path


def process_start(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where the system does not tell (no /proc)."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(told.rpartition(")")[2].split()[19])  # the 22nd field; the 2nd, in brackets, may hold blanks


def is_alive(pid: int | None, start: int | None) -> bool:
    """Whether process `pid` is there, and is the one that started at `start` (None = not known)."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    now = process_start(pid)
    return start is None or now is None or now == start
