"""Signals that ask a run to stop: it saves at the next step boundary and exits with 128 + signal.

    SIGINT (Ctrl-C)  130      a second Ctrl-C aborts at once, without saving
    SIGUSR1          138      SIGUSR1 and SIGUSR2 are what clusters send before a time limit
    SIGUSR2          140
    SIGTERM          143

Outside of the training loop the same signals end the run at once, with the same codes; what was saved stays. Of
several processes, one that gets a signal in the loop stops all of them, at the same step and in the same way.
A handler that was there before (a cluster launcher's) is called first; a SLURM job queues again (`requeue`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from mmadapter.launch.signals import STOPS, TERMINATIONS, WARNINGS
from mmadapter.launch.watch import speak
from mmadapter.processes import answer_with, ask_first, here
from mmadapter.training.requeue import own_job, requeue, requeue_is_due

HOLD_SECONDS = 30  # the longest that SLURM takes for a requeue
REACT_SECONDS = 2  # for a main thread to see a signal; one that waits in C for another process does not
LOOP_SECONDS = 15  # for the loop's last save


class RunStopped(SystemExit):
    """The run was asked to stop, has saved, and goes on when the same command is given again."""


class Attempt:
    """This process's attempt at a run, as far as signals are concerned."""

    starters: dict[int, Any] = {}  # signal -> the handler that was there before `termination_interrupts`
    is_first = True  # of the run's processes
    is_ending = threading.Event()  # a requeue sends SIGTERM to the very process that asked for it
    end = threading.Lock()  # held by the thread that ends it

    @classmethod
    def take_end(cls) -> bool:
        """Whether this call is the first that ends the attempt; from any thread, and from a signal's handler."""
        if not cls.end.acquire(blocking=False):
            return False
        cls.is_ending.set()
        return True


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal outside of the training loop: ends the run at once; what was saved stays."""
    if Attempt.take_end():  # the next one may come within the microsecond
        raise KeyboardInterrupt(signal.Signals(number))


@contextlib.contextmanager
def termination_interrupts() -> Iterator[None]:
    """While inside, SIGTERM, SIGUSR1 and SIGUSR2 act as Ctrl-C does. Main thread only, else no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    Attempt.is_first, Attempt.is_ending, Attempt.end = here().is_first, threading.Event(), threading.Lock()
    Attempt.starters = {number: signal.signal(number, interrupt) for number in TERMINATIONS}
    answer_with(requeue_beside)
    try:
        yield
    finally:
        for number, earlier in Attempt.starters.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def release_signals() -> None:
    """Lets the signals come that `config.signals.hold_signals` has kept back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATIONS)


def end_attempt(number: signal.Signals, earlier: Any, say: Callable[[str], Any]) -> NoReturn:
    """The last act of a run that `number` stopped: back into a cluster's queue where that is due; raises RunStopped.

    `earlier` is the handler that was there before the loop's; a cluster launcher's may requeue and exit by itself.
    """
    Attempt.take_end()
    for one in TERMINATIONS:  # SLURM sends them to all of a job's processes, often twice: `scontrol` must live, too
        signal.signal(one, signal.SIG_IGN)
    if earlier is interrupt:
        earlier = Attempt.starters.get(number)
    launcher = _launcher(number, earlier)
    if requeue_is_due(number):
        if Attempt.is_first or not _first_requeues(number):
            say(requeue(launcher if number in WARNINGS else None))
    elif launcher is not None and own_job() is None:
        launcher()
    raise RunStopped(128 + number)


def _launcher(number: int, handler: Any) -> Callable[[], Any] | None:
    """What a launcher's handler does about a signal; None where there was no launcher."""
    is_a_launchers = callable(handler) and handler is not signal.default_int_handler
    return partial(handler, number, None) if is_a_launchers else None


def _first_requeues(number: signal.Signals) -> bool:
    """Keeps a process from ending before the first one has asked for the requeue, on which SIGTERM follows.

    SLURM may end a whole job as soon as one of its processes ends with a status that is not 0. Outside of the loop the
    first one may wait for this very process, or know of no signal: it is asked. False where nothing came of it.
    """

    def ended(_: int, frame: FrameType | None) -> None:
        raise RunStopped(128 + number)

    began = time.monotonic()
    if ask_first(number, HOLD_SECONDS):
        return True
    signal.signal(signal.SIGTERM, ended)
    time.sleep(max(0.0, HOLD_SECONDS - (time.monotonic() - began)))
    return False


def requeue_beside(number: int) -> bool:
    """On a thread of the first process, when another one holds: asks for the requeue if the main thread does not.

    Returns whether it did; then that other one ends, and all with it.
    """
    patience, handler = REACT_SECONDS, signal.getsignal(number)
    if handler is interrupt or isinstance(handler, StopRequest):  # else the run is at its end
        os.kill(os.getpid(), number)
        patience = REACT_SECONDS if handler is interrupt else LOOP_SECONDS
    if Attempt.is_ending.wait(patience) or not Attempt.take_end():
        return False
    signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATIONS)  # of this thread, and so of its `scontrol`
    said = ""
    with contextlib.suppress(SystemExit):  # a launcher's, once it has asked
        said = requeue(_launcher(number, Attempt.starters.get(number)) if number in WARNINGS else None)
    speak(f"interrupted by {signal.Signals(number).name}. Run the same command again to go on. {said}".strip())
    return True


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
            asked = here().sum([float(self.received == number) for number in STOPS])
            self.signal = next((number for number, count in zip(STOPS, asked, strict=True) if count), None)
        return self.signal is not None

    def finish(self, say: Callable[[str], Any] = print) -> NoReturn:
        """Ends the run after its save."""
        assert self.signal is not None
        end_attempt(self.signal, self.previous.get(self.signal), say)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """While inside, signals only set a flag; afterwards earlier handlers are back. Main thread only, else no effect.

    A signal of the last moments, which nobody has asked for any more, comes to the earlier handler at the end.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    request.previous = {number: signal.signal(number, request) for number in STOPS}
    try:
        yield request
    finally:
        for number, earlier in request.previous.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
    if request.received is not None and request.signal is None:
        signal.raise_signal(request.received)
