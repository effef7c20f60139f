"""A SLURM cluster for tests on this machine, and what tests ask it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmadapter.training.preemption import TERMINATIONS

CHECKOUT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("cluster.sh")
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged")


def reason_not_to_run() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return "not run: a SLURM of its own needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not run: {', '.join(missing)} missing; to install them (Debian, Ubuntu): {SCRIPT} install"
    return None


class Cluster:
    """A running cluster; its commands never reach another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        threads = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
            "CPUS": "2",
        }
        self.environment = {**os.environ, **threads, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        self.call(str(SCRIPT), "start", str(self.folder))

    def stop(self) -> None:
        self.call(str(SCRIPT), "stop", str(self.folder))

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """The output of a command that must succeed."""
        told = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert told.returncode == 0, f"{command}: {told.stdout}{told.stderr}"
        return told.stdout

    def train(self, folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`mmadapter train ARGUMENTS` from `folder`, to its end."""
        command = [sys.executable, str(CHECKOUT / "train.py"), *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, timeout=timeout
        )

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job."""
        text = self.call("scontrol", "show", "job", "--oneliner", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def take_node(self, node: str) -> None:
        """A job of higher priority takes the whole node for a moment."""
        options = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
        self.call("sbatch", *options, "--wrap=:")

    def wait_until_gone(self, numbers: list[str], seconds: float = 600) -> None:
        """Until these jobs are neither waiting nor running."""
        wait_until(
            lambda: not set(numbers) & set(self.queued()), seconds, lambda: f"{numbers} to end: {self.call('squeue')}"
        )

    def queued(self) -> list[str]:
        return self.call("squeue", "--noheader", "--array", "--format=%i").split()


def wait_until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """The first true value of `condition()`; fails after `seconds`, and then says for `what` it has waited."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what if isinstance(what, str) else what()}"
        time.sleep(0.2)
    return value


def hold_until_signalled(process: int, seconds: float = 240) -> bool:
    """A process of this machine stands still until it is told to stop, so that it cannot end before; True, at once.

    SLURM itself may let it go on then. It goes on after `seconds` all the same: the signal may have come just before.
    """

    def watch() -> None:
        end, stood = time.monotonic() + seconds, False
        while time.monotonic() < end:
            text = status_of(process)
            stands = "(stopped)" in text  # not at once: a write to the disk ends first
            if not text or is_signalled(text) or (stood and not stands):
                break
            stood = stands
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)

    os.kill(process, signal.SIGSTOP)
    threading.Thread(target=watch, daemon=True).start()
    return True


def status_of(process: int) -> str:
    """What the system says of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_signalled(status: str) -> bool:
    """Whether a signal that asks to stop waits for a process that stands still."""
    pending = [int(mask, 16) for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", status, re.MULTILINE)]
    return any(mask >> (number - 1) & 1 for mask in pending for number in TERMINATIONS)
