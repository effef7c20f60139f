"""launch.processes=N: one command starts N processes of itself on this machine, and ends as a single one would."""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from mmadapter.launch.environment import NAMES_OF_LAUNCHERS, OUR_LAUNCHER, PORTS
from mmadapter.launch.signals import STOPS

SAVE_SECONDS = 120.0  # for a process whose launcher is gone to save and end
PARENT_SECONDS = 2.0  # between two looks at whether torchrun still is there
PARENT = "MMADAPTER_PARENT"  # a pipe that ends when the process that started this one does
OTHERS_SECONDS = 20.0  # for the other processes to end by themselves, once one has ended badly


def start_processes(command: Sequence[str], count: int, environment: Mapping[str, str]) -> int:
    """Runs `command` as `count` processes and returns the exit status: 0, or that of the first that ended badly.

    Signals that ask to stop are passed on. A process that ends badly takes the others with it. A handler that was there
    before (a cluster launcher's) is called when all have ended after its signal, in place of the return.
    """
    reading, writing = os.pipe()
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), OUR_LAUNCHER: "launch.processes"}
    shared = {**environment, **meeting, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), PARENT: str(reading)}
    children: list[subprocess.Popen[bytes]] = []
    with passed_on(children) as received:
        try:
            for rank in range(count):
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                # A group of its own, or a Ctrl-C would reach it twice, which means: at once, without saving.
                child = subprocess.Popen(command, env=own, pass_fds=(reading,), process_group=0)
                children.append(child)
                for number in received:  # came while starting
                    child.send_signal(number)
            return status_of_all(children)
        finally:
            for child in children:
                child.kill()
            os.close(reading)
            os.close(writing)


def status_of_all(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all processes; once one has ended badly, the others get OTHERS_SECONDS."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait_for(rank: int) -> None:
        children[rank].wait()
        ended.put(rank)

    for rank in range(len(children)):
        threading.Thread(target=wait_for, args=(rank,), daemon=True).start()
    status, deadline, running = 0, None, set(range(len(children)))
    while running:
        try:
            rank = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            for rank in running:
                children[rank].kill()
            deadline = None
            continue
        running.discard(rank)
        code = children[rank].returncode
        if code and not status:
            status, deadline = exit_status(code), time.monotonic() + OTHERS_SECONDS
            if code < 0:
                print(f"process {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return status


@contextmanager
def passed_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """While inside, signals that ask to stop go to the children; what has come is listed. Main thread only."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    earlier: dict[int, Any] = {number: signal.signal(number, pass_on) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if received and callable(handler := earlier[received[0]]) and handler is not signal.default_int_handler:
        handler(received[0], None)


def exit_status(code: int) -> int:
    """What a shell calls the end of a process: 128 + signal where one ended it."""
    return 128 - code if code < 0 else code


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def end_with_parent(environment: Mapping[str, str]) -> None:
    """Ends this process when the launcher that started it is gone (kill -9), so that nothing trains on unseen.

    It asks itself to stop, as all the others of this launcher do, so that they save; after SAVE_SECONDS it ends in any
    case. launch.processes leaves a pipe to find that out; torchrun and deepspeed are known by their variables, and are
    this process's parent. One that somebody has started alone may outlive its shell.
    """
    if PARENT in environment:
        ended = partial(read_to_end, int(environment[PARENT]))
    elif any(name in environment for name in NAMES_OF_LAUNCHERS):
        ended = partial(wait_for_another_parent, os.getppid())
    else:
        return

    def watch() -> None:
        ended()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVE_SECONDS)  # the end of the process is the end of this thread
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def read_to_end(descriptor: int) -> None:
    """Waits until nobody holds the other end of a pipe; where it is no open file, for ever."""
    try:
        os.read(descriptor, 1)
    except OSError:
        threading.Event().wait()


def wait_for_another_parent(parent: int) -> None:
    """Waits until this process is no longer the child of `parent`."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
