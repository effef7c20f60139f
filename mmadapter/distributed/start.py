"""launch.processes=N: one command starts N ranks of itself on this machine, and ends as a single process would.

Not torchrun: its store listens on all interfaces, and it kills ranks 30 s after a signal and changes exit statuses.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from mmadapter.distributed.launchers import OTHER_LAUNCHERS, RENDEZVOUS, STARTER

DEFAULT_THREADS = 2  # more made small models 10 to 100 times slower on a shared machine
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# How OpenMP's threads wait: the standard's name, and GNU's, which PyTorch's wheels for Linux read (Intel's is
# KMP_BLOCKTIME). 1,000 spins take some 10 microseconds. Measured with the quick start on 2 cores: with none a step took
# 1.3 times as long on quiet cores; with 300,000, GNU's default, a run of 25 s had not ended after 405 s beside four
# busy loops, where it takes 160 s now.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
# What asks a run to stop; SIGUSR1 and SIGUSR2 are not everywhere (Windows).
STOPS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
GRACE_SECONDS = 10.0  # for the other ranks to end by themselves, once one has ended with an error
PARENT_SECONDS = 2.0  # between two looks at whether the launcher is still there
SAVE_SECONDS = 120.0  # for a rank whose launcher is gone to save and end


def start_ranks(command: Sequence[str], count: int, environment: Mapping[str, str]) -> int:
    """Runs `command` as `count` ranks. Returns 0, or the exit status of the first rank that ended with an error.

    Signals that ask to stop are passed on, each once. When a rank ends with an error, the others get GRACE_SECONDS.
    """
    with tempfile.TemporaryDirectory(prefix="mmadapter-") as folder:  # readable by this user alone
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        shared = {
            **environment,
            STARTER: str(os.getpid()),
            RENDEZVOUS: os.path.join(folder, "store"),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "GLOO_SOCKET_IFNAME": loopback,
            "NCCL_SOCKET_IFNAME": loopback,
        }
        ranks: list[subprocess.Popen[bytes]] = []
        with passed_on(ranks) as received:
            try:
                for rank in range(count):
                    own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    # A process group of its own: else a Ctrl-C reaches it twice, which means "abort without saving".
                    ranks.append(subprocess.Popen(command, env=own, process_group=0))
                    for number in received:  # while starting
                        ranks[-1].send_signal(number)
                return wait_for(ranks)
            finally:
                for process in ranks:
                    process.kill()
                    process.wait()


def wait_for(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all ranks have ended; kills those that outlive another one's failure by GRACE_SECONDS."""
    status, deadline, running = 0, float("inf"), dict(enumerate(ranks))
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            if code and not status:
                status, deadline = 128 - code if code < 0 else code, time.monotonic() + GRACE_SECONDS
                if code < 0:
                    print(f"rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
        if time.monotonic() >= deadline:
            for process in running.values():
                process.kill()
        time.sleep(0.05)
    return status


@contextmanager
def passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """While inside, signals that ask to stop go to the processes; lists those that came. Main thread only."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    earlier = {number: signal.signal(number, pass_on) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def end_with_parent(environment: Mapping[str, str]) -> None:
    """Ends this rank when the launcher that started it is gone (kill -9), so that nothing trains on unseen.

    The rank sends itself SIGTERM, as all ranks of this launcher do, so that they save; after SAVE_SECONDS it ends in
    any case. A process that somebody has started alone may outlive its shell, and tasks of srun are SLURM's to end.
    """
    if STARTER in environment:
        parent = int(environment[STARTER])  # it may be gone already
    elif any(name in environment for name in OTHER_LAUNCHERS):
        parent = os.getppid()
    else:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVE_SECONDS)  # this thread ends with the process
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def set_threads(threads: int | None) -> None:
    """Set the thread counts of the numeric libraries, which read them when they are first imported.

    Threads that wait soon sleep: those that go on spinning keep each other from the cores as soon as other programs
    run, and small models are then tens of times slower. What the user has set holds.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = thread_count(threads)
    if not os.environ.keys() & {*WAITING, "KMP_BLOCKTIME"}:
        os.environ.update(WAITING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def thread_count(threads: int | None, processes: int = 1) -> str:
    """Threads of each of `processes` on this machine: `threads`, or None: what OMP_NUM_THREADS says, else 2, or the
    process's part of the usable cores if that is less."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(threads or os.environ.get("OMP_NUM_THREADS") or min(DEFAULT_THREADS, max(usable // processes, 1)))


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that an interrupt stands for; Ctrl-C names none."""
    return error.args[0] if error.args else signal.SIGINT
