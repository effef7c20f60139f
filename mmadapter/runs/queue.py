"""What SLURM's queue says of this user's jobs, where there is one."""

from __future__ import annotations

import shutil
import subprocess

COMMAND = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r"]


def jobs_in_queue() -> dict[str, tuple[str, str]] | None:
    """Job number ("12", "12_3") -> (state, reason); None where there is no SLURM, or it does not answer."""
    if shutil.which(COMMAND[0]) is None:
        return None
    try:
        told = subprocess.run(COMMAND, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split("|") for line in told.stdout.splitlines() if line.count("|") == 2]
    return {number.strip(): (state.strip(), reason.strip()) for number, state, reason in rows}
