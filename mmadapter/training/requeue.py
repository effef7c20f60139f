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

REQUEUING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


def requeue_is_due(number: signal.Signals) -> bool:
    """Whether `number` asks this process's SLURM job to queue again; the same on every process of the job."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or number not in (*REQUEUING, signal.SIGTERM):
        return False
    state = job_state(job)
    if state.get("BatchFlag") != "1":
        return False
    return number in REQUEUING or (state.get("JobState") == "RUNNING" and is_preempted(state))


def requeue() -> str:
    """Puts this process's SLURM job back into the queue; says what came of it."""
    job = os.environ["SLURM_JOB_ID"]
    if job_state(job).get("Requeue") != "1":
        return f"SLURM does not requeue job {job} (Requeue=0): submit it again, with --requeue."
    told = _scontrol("requeue", job)
    if told.returncode:
        return f"SLURM did not requeue job {job}: {told.stderr.strip()}. Submit it again."
    return f"SLURM job {job} is back in the queue."


def is_preempted(state: dict[str, str]) -> bool:
    """Whether a job of higher priority takes this one's place."""
    return state.get("PreemptTime", "None") not in ("None", "(null)", "Unknown")


def job_state(job: str) -> dict[str, str]:
    """What `scontrol show job` says, by key; empty where it says nothing."""
    told = _scontrol("show", "job", "--oneliner", job)
    return dict(word.split("=", 1) for word in told.stdout.split() if "=" in word)


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
