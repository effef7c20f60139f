"""Ends processes at random moments: after so many steps, in the middle of a save, or at any time from the start on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmadapter.runs.journal import read_metrics

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
NEVER_STARTED = 120.0  # seconds


@dataclass(frozen=True)
class Kill:
    """One end of a process: by what, and when."""

    number: signal.Signals
    moment: str  # "steps": so many steps further; "save": in the next save after these; "time": whatever is going on
    steps: int
    seconds: float

    @classmethod
    def draw(cls, rng: random.Random, steps: int, seconds: float) -> Kill:
        """Less than `steps` further, or than `seconds` after the start."""
        moment = rng.choice(("steps", "save", "save", "time"))
        delay = rng.random() * (seconds if moment == "time" else 0.01)
        return cls(rng.choice(SIGNALS), moment, rng.randrange(steps), delay)

    def expected(self, status: int) -> bool:
        """Whether a process may end so: through, by the signal before the loop, or with its documented code."""
        return status in (0, -self.number, 128 + self.number)

    def strike(self, folder: Path, pid: int, is_alive: Callable[[], bool]) -> bool:
        """Sends the signal when its moment has come; False where the process ended before. `folder`: the run's."""
        first, deadline = steps_done(folder), time.monotonic() + NEVER_STARTED
        while self.moment != "time" and is_alive() and time.monotonic() < deadline:
            if steps_done(folder) >= first + self.steps and (self.moment == "steps" or is_saving(folder)):
                break
            time.sleep(0.0005)
        time.sleep(0 if self.moment == "save" else self.seconds)
        if is_alive():
            os.kill(pid, self.number)
            return True
        return False


def steps_done(folder: Path) -> int:
    """Steps in the journal."""
    return len(read_metrics(folder / "metrics.jsonl", "train"))


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint or an adapter is half written at this moment."""
    return any((folder / "checkpoints").glob(".*")) or any(folder.glob(".adapter-*"))
