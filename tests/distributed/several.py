"""Several ranks of one run, forked from the test (nothing is imported again), as launch.processes would start them.

All must compute with one thread. After a fork GNU OpenMP has lost the threads that the parent had started, and waits
for ever for them at the first computation that wants more than one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mmadapter.distributed.launchers import RENDEZVOUS, STARTER
from mmadapter.distributed.ranks import Ranks, connected

OURS = "launch.processes"
DEADLINE = 180.0  # seconds in which all must have ended, on a busy machine
GRACE_SECONDS = 10.0  # for the others, once one has ended with an error


_here = Ranks()


def here() -> Ranks:
    """The ranks of the process that asks: within `joined` those that it is connected with, else it alone."""
    return _here


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Connected as a run with DeepSpeed is, for checks that ask `here()`."""
    global _here
    with connected("cpu", group_of_one=True) as _here:
        yield _here
    _here = Ranks()


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


def in_own_process(function: Callable, *arguments, output: Path) -> BaseProcess:
    """Starts `function` in a forked process (nothing is imported again), its output going to a file."""

    def body() -> None:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process
