"""Signals that ask a run to stop: it saves at the next step boundary, exits with 128 + signal, and queues again.

    SIGINT (Ctrl-C)  130   a person: a second Ctrl-C aborts at once, without saving; nothing is requeued
    SIGUSR1          138   SIGUSR1 and SIGUSR2 are what clusters send before a time limit, and many at a preemption:
    SIGUSR2          140   requeue
    SIGTERM          143   a preemption with a grace time: requeue; scancel, `scontrol requeue` by others: SLURM has
                           decided, nothing is asked for

In the training loop a handler only sets a flag, for which the loop asks; a signal to one rank stops all of them at the
same step. Outside of the loop there is nothing new to save: the same signals raise KeyboardInterrupt and end the run at
once, with the same exit status. Loads no torch: the command needs its part before torch is imported.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from mmadapter.distributed.launchers import own_job
from mmadapter.distributed.start import STOPS, signal_of
from mmadapter.errors import InputError

if TYPE_CHECKING:
    from mmadapter.distributed.ranks import Ranks

TERMINATIONS = tuple(number for number in STOPS if number != signal.SIGINT)  # Python itself handles Ctrl-C
WARNINGS = tuple(number for number in TERMINATIONS if number != signal.SIGTERM)


class RunStopped(SystemExit):
    """The run was asked to stop; the same command continues it."""


# --- from the command's start to its end


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """While inside, SIGTERM, SIGUSR1 and SIGUSR2 act as Ctrl-C does. Main thread only, else no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.signal(number, _interrupt) for number in TERMINATIONS}
    try:
        yield
    finally:
        _set_handlers(earlier)


def hold_signals() -> None:
    """Holds signals back until the run can act on them (`release_signals`): imports and the meeting take seconds."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATIONS)


def release_signals() -> None:
    """Lets signals through that `hold_signals`, or the start of a SLURM job, has held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATIONS)


def ignore_signals() -> None:
    """When all is done: a signal while Python ends, or a second one while a run stops, must not make a failure of it.

    Programs that are started then ignore them, too: SLURM sends SIGTERM to all of a job's processes when it requeues.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    # One that another thread takes in the same microsecond finds no handler any more, which Python would print.
    earlier = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "ignored due to race" in str(found.exc_value) else earlier(found)
    hold_signals()
    for number in TERMINATIONS:
        signal.signal(number, signal.SIG_IGN)
    release_signals()


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore_signals()  # the next one may come within the microsecond
    raise KeyboardInterrupt(signal.Signals(number))


def _set_handlers(handlers: dict[Any, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


# --- in the training loop


class StopRequest:
    """The first signal that asked to stop: this rank (`received`), or all of them (`signal`)."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.received: signal.Signals | None = None
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    def agreed(self) -> bool:
        """Whether a rank has been asked to stop. Collective: every rank asks at the same place."""
        if self.signal is None:
            asked = self.ranks.sum([float(self.received == number) for number in STOPS])
            self.signal = next((number for number, count in zip(STOPS, asked, strict=True) if count), None)
        return self.signal is not None

    def finish(self, say: Callable[[str], object] = print) -> NoReturn:
        """Ends the run after its save. Collective: rank 0 asks for the requeue, and all leave after that."""
        assert self.signal is not None
        ignore_signals()
        number = self.signal
        if said := self.ranks.decide(lambda: requeue(number)):
            say(said)
        self.ranks.leave()
        raise RunStopped(128 + number)


@contextlib.contextmanager
def stop_on_signals(ranks: Ranks) -> Iterator[StopRequest]:
    """While inside, signals only set a flag; afterwards earlier handlers are back. Main thread only, else no effect.

    A signal of the last moments, for which nobody has asked any more, comes to the earlier handler at the end.
    """
    request = StopRequest(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    earlier = {number: signal.signal(number, request) for number in STOPS}
    try:
        yield request
    finally:
        if request.signal is not None:  # what is left of a stopped run is not interrupted again
            earlier = {n: signal.SIG_IGN if handler is _interrupt else handler for n, handler in earlier.items()}
        _set_handlers(earlier)
    if request.received is not None and request.signal is None:
        signal.raise_signal(request.received)


# --- the end of a stopped run, and SLURM


def way_on(resume: str, folder: Path | str = "THE_RUN_FOLDER") -> str:
    """How to continue a run, as messages say it: with its command, but `resume=never` would take a new folder."""
    if resume != "never":
        return "Run the same command again"
    return f"Run the same command with run={folder} in place of resume=never"


def end_interrupted(ranks: Ranks, error: KeyboardInterrupt, way_on: str, say: Callable[[str], object]) -> NoReturn:
    """Ends a run that was interrupted outside of the loop. One rank says so and requeues; the others end after it.

    It need not be rank 0, which may wait in a collective for the very rank that was interrupted.
    """
    number = signal_of(error)
    ignore_signals()

    def last_words() -> None:
        text = f"interrupted by {number.name}. {way_on} to go on from the last checkpoint. {requeue(number)}".strip()
        say(text) if ranks.is_first else print(text, flush=True)

    raise RunStopped(ranks.end(128 + number, last_words))


def requeue(number: signal.Signals) -> str:
    """Puts this process's SLURM job back into the queue where `number` asks for that; says what came of it.

    Only a batch job that SLURM has not decided about is requeued; an interactive one (salloc, srun) ends.
    """
    job = own_job()
    state = job_state(job) if job is not None and number in TERMINATIONS else {}
    is_preempted = state.get("PreemptTime", "None") not in ("None", "(null)", "Unknown")
    is_ours_to_ask = state.get("BatchFlag") == "1" and state.get("JobState") == "RUNNING"
    if job is None or not is_ours_to_ask or not (number in WARNINGS or is_preempted):
        return ""
    if state.get("Requeue") != "1":
        return f"SLURM does not requeue job {job} (Requeue=0). To fix: submit it again, with --requeue."
    try:
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        if job_state(job).get("JobState") == "RUNNING":  # else SLURM was quicker
            said = getattr(error, "stderr", None) or error
            return f"SLURM job {job} is not requeued: {said} To fix: submit it again."
    return f"SLURM job {job} is back in the queue."


def refuse_new_folders(resume: str) -> None:
    """Raises InputError for `resume=never` in a job that SLURM may requeue: each attempt would take a new folder."""
    job = own_job()
    if resume != "never" or job is None:
        return
    state = job_state(job)
    if state.get("BatchFlag") == "1" and state.get("Requeue") == "1":
        raise InputError(
            f"resume=never in SLURM job {job}, which may queue again, would begin anew each time. To fix: leave it out "
            "(for a folder of its own: run=NAME), or submit the job with --no-requeue."
        )


def job_state(job: str) -> dict[str, str]:
    """What `scontrol show job` says, by key; empty where it says nothing."""
    try:
        told = _scontrol("show", "job", "--oneliner", job)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(word.split("=", 1) for word in told.split() if "=" in word)


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout
