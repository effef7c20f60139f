"""Several processes of one run, forked from the test (nothing is imported again).

All must compute with one thread. After a fork GNU OpenMP has lost the threads that the parent had started, and waits
for ever for them at the first computation that wants more than one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mmadapter.launch.start import free_port
from tests.training.toy import in_own_process

DEADLINE = 60.0  # seconds in which all must have ended


class Several:
    """`function(*arguments)` on `count` processes; what process K says is in FOLDER/said-K."""

    def __init__(self, count: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        port, self.processes = free_port(), list[BaseProcess]()
        for rank in range(count):
            environment = {
                "RANK": rank,
                "WORLD_SIZE": count,
                "LOCAL_RANK": rank,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            output = folder / f"said-{rank}"
            self.processes.append(in_own_process(_run, environment, function, arguments, output=output))

    def end(self, seconds: float = DEADLINE) -> list[int | None]:
        """The exit statuses, once all have ended (-9 after a kill); those that hang are killed and have None."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hung = [process.is_alive() for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [None if hangs else process.exitcode for hangs, process in zip(hung, self.processes, strict=True)]

    def said(self, rank: int) -> str:
        return (self.folder / f"said-{rank}").read_text()


def _run(environment: dict[str, Any], function: Callable[..., Any], arguments: tuple) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    function(*arguments)
