"""Several ranks of one run, forked from the test (nothing is imported again), as launch.processes would start them.

All must compute with one thread. After a fork GNU OpenMP has lost the threads that the parent had started, and waits
for ever for them at the first computation that wants more than one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mmadapter.distributed.launchers import RENDEZVOUS, STARTER
from tests.training.toy import in_own_process

OURS = "launch.processes"
DEADLINE = 60.0  # seconds in which all must have ended
GRACE_SECONDS = 10.0  # for the others, once one has ended with an error


class Several:
    """`function(*arguments)` on `count` ranks; what rank K says is in FOLDER/said-K.

    The ranks meet through a file; with `launcher="torchrun"` at an address, where rank 0 listens.
    """

    def __init__(
        self,
        count: int,
        function: Callable[..., Any],
        *arguments: Any,
        folder: Path,
        launcher: str = OURS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.processes = folder, list[BaseProcess]()
        shared: dict[str, Any] = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        if launcher == OURS:
            shared = {STARTER: os.getpid(), RENDEZVOUS: folder / f"store-{time.monotonic_ns()}"}
        for rank in range(count):
            environment = shared | {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "GLOO_SOCKET_IFNAME": "lo"}
            output = folder / f"said-{rank}"
            self.processes.append(in_own_process(_run, environment, function, arguments, output=output))

    def end(self, seconds: float = DEADLINE) -> list[int | None]:
        """The exit statuses, once all have ended (-9 after a kill); those that hang are killed and have None.

        Ranks that outlive another one's failure by GRACE_SECONDS are killed, and have -9.
        """
        deadline, failed_at = time.monotonic() + seconds, float("inf")
        while any(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
            if failed_at == float("inf") and any(process.exitcode for process in self.processes):
                failed_at = time.monotonic()
            if time.monotonic() > failed_at + GRACE_SECONDS:
                for process in self.processes:
                    process.kill()
            time.sleep(0.02)
        hung = [process.is_alive() for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return [None if hangs else process.exitcode for hangs, process in zip(hung, self.processes, strict=True)]

    def said(self, rank: int) -> str:
        return (self.folder / f"said-{rank}").read_text()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _run(environment: dict[str, Any], function: Callable[..., Any], arguments: tuple) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    function(*arguments)
