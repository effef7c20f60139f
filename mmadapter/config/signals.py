"""Signals while no run sees to them: settings are checked, torch is imported, or Python ends; that takes seconds."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from mmadapter.launch.signals import TERMINATIONS


@contextlib.contextmanager
def early_interrupts() -> Iterator[None]:
    """While inside, signals that end a run act as Ctrl-C does, so that the command can say so and leave with 128 + N.

    Those that somebody handles already (a cluster's launcher) stay as they are. Main thread only, else no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in TERMINATIONS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        _give_back()


def hold_signals() -> None:
    """Keeps signals that end a run back until `training.run` sees to them: it takes seconds to import."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATIONS)
        _give_back()


def ignore_signals() -> None:
    """At the end of a command: all is done, and a signal while Python ends must not make a failure of it."""
    if threading.current_thread() is threading.main_thread():
        for number in TERMINATIONS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.SIG_IGN)


def ended_by(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that an interrupt stands for; Ctrl-C names none."""
    return error.args[0] if error.args else signal.SIGINT


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number))


def _give_back() -> None:
    for number in TERMINATIONS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)
