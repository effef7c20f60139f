"""The signals that ask a run to stop, by who sends them; those that this system has."""

from __future__ import annotations

import signal


def _known(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


WARNINGS = _known("SIGUSR1", "SIGUSR2")  # by a cluster, before a time limit or a preemption: the job queues again
TERMINATIONS = (*_known("SIGTERM"), *WARNINGS)  # what ends a process at once, where nobody sees to it
STOPS = (signal.SIGINT, *TERMINATIONS)  # Python itself sees to SIGINT (Ctrl-C) from the start
