"""Signals that ask a run to stop: it saves at the next step boundary and exits with 128 + signal.

    SIGINT (Ctrl-C)  130      a second Ctrl-C aborts at once, without saving
    SIGUSR1          138      SIGUSR1 and SIGUSR2 are what clusters send before a time limit
    SIGUSR2          140
    SIGTERM          143

A handler that was there before (a cluster launcher's) is called after the save, in place of the exit. Of several
processes, one that gets a signal stops all of them, at the same step and in the same way.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mmadapter.processes import here

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class RunStopped(SystemExit):
    """The run was asked to stop, has saved, and goes on when the same command is given again."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal outside of the training loop: ends the run at once; what was saved stays."""
    raise KeyboardInterrupt(signal.Signals(number))


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """While inside, SIGTERM acts as Ctrl-C does, unless somebody else handles it. Main thread only, else no effect."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopRequest:
    """Remembers the first signal that asked to stop: this process (`received`), or all of them (`signal`)."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self.previous: dict[int, Any] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = signal.Signals(number)

    def agreed(self) -> bool:
        """Whether one of the processes has been asked to stop; every process asks this at the same place."""
        if self.signal is None:
            asked = here().sum([float(self.received == number) for number in SIGNALS])
            self.signal = next((number for number, count in zip(SIGNALS, asked, strict=True) if count), None)
        return self.signal is not None

    def finish(self) -> None:
        """Ends the run after its save: the earlier handler where there was one, else the documented exit code."""
        assert self.signal is not None
        earlier = self.previous.get(self.signal)
        if callable(earlier) and earlier not in (signal.default_int_handler, interrupt):
            earlier(self.signal, None)
        raise RunStopped(128 + self.signal)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, signals only set a flag; afterwards earlier handlers are back. Main thread only, else no effect."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    for number in SIGNALS:
        request.previous[number] = signal.signal(number, request)
    try:
        yield request
    finally:
        for number, earlier in request.previous.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
