"""A SLURM job that was told to stop goes back into the queue, so that the same run folder continues (law 6).

    SIGUSR1, SIGUSR2   what `--signal` sends before the time limit, and what many sites send at a preemption: requeue
    SIGTERM            a preemption with a grace time: requeue (a job that ends in that time would count as failed);
                       scancel, `scontrol requeue` by others: SLURM has decided, nothing is asked for
    SIGINT             a person at the terminal: nothing is asked for

Only a batch job that may be requeued is; an interactive one (salloc, srun) ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from mmadapter.errors import InputError
from mmadapter.launch.signals import TERMINATIONS, WARNINGS


def refuse_anew(conf: Any) -> None:
    """Raises InputError for `resume=never` in a batch job that queues again: each attempt would take a new folder."""
    job = own_job()
    if conf.resume != "never" or job is None:
        return
    state = job_state(job)
    if state.get("BatchFlag") == "1" and state.get("Requeue") == "1":
        raise InputError(
            f"resume=never in SLURM job {job}, which may queue again, would begin anew each time. Leave it away (for "
            "a folder of its own: run=NAME), or submit the job with --no-requeue."
        )


def requeue_is_due(number: signal.Signals) -> bool:
    """Whether `number` asks this process's SLURM job to queue again; the same on every process of the job."""
    job = own_job()
    if job is None or number not in TERMINATIONS:
        return False
    state = job_state(job)
    if state.get("BatchFlag") != "1" or not is_running(state):
        return False
    return number in WARNINGS or is_preempted(state)


def requeue(launcher: Callable[[], Any] | None = None) -> str:
    """Puts this process's SLURM job back into the queue; says what came of it.

    `launcher()` is how the job's launcher does it (submitit counts time limits, requeues and exits); else `scontrol`.
    """
    job = own_job()
    assert job is not None
    try:
        if launcher is not None:
            launcher()
        elif job_state(job).get("Requeue") != "1":
            return f"SLURM does not requeue job {job} (Requeue=0): submit it again, with --requeue."
        else:
            _scontrol("requeue", job, check=True)
    except Exception as error:  # submitit's have no common base
        if is_running(job_state(job)):
            return f"SLURM job {job} is not requeued: {getattr(error, 'stderr', None) or error} Submit it again."
    return f"SLURM job {job} is back in the queue."


def own_job() -> str | None:
    """The number of this process's SLURM job; in an array "12_3", for 12 alone may mean all of them."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_running(state: dict[str, str]) -> bool:
    """Whether SLURM has not yet decided what becomes of the job: cancelled, requeued by a preemption, at its limit."""
    return state.get("JobState") == "RUNNING"


def is_preempted(state: dict[str, str]) -> bool:
    """Whether a job of higher priority takes this one's place."""
    return state.get("PreemptTime", "None") not in ("None", "(null)", "Unknown")


def job_state(job: str) -> dict[str, str]:
    """What `scontrol show job` says, by key; empty where it says nothing."""
    try:
        told = _scontrol("show", "job", "--oneliner", job)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(word.split("=", 1) for word in told.stdout.split() if "=" in word)


def _scontrol(*arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=check)
