"""The jobs of a sweep as the client sees them: what is finished, what an earlier start has submitted, what is to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.runs.queue import jobs_in_queue
from mmadapter.runs.sweep_file import note_jobs, read_sweep


@dataclass
class Job:
    number: int
    overrides: list[str]  # its whole command line
    folder: Path  # its run folder
    finished: bool  # when the sweep was started
    slurm: Any = None  # submitit's job, once it is submitted

    @property
    def waits(self) -> bool:
        """Whether it has still to be submitted."""
        return not self.finished and self.slurm is None

    def line(self, swept: set[str]) -> str:
        """Where it stands, for the terminal; `swept` as the function of this name finds it."""
        state = "finished" if self.finished else f"SLURM job {self.slurm.job_id}"
        own = " ".join(word for word in self.overrides if word in swept)
        return "  ".join(word for word in (f"job {self.number}: {state}", own, str(self.folder)) if word)


def swept(jobs: list[Job]) -> set[str]:
    """The overrides that not all jobs have."""
    each: list[set[str]] = [set(job.overrides) for job in jobs]
    return set().union(*each) - each[0].intersection(*each)


def attach_queued(sweep: Path, jobs: list[Job]) -> None:
    """Gives jobs that an earlier start of this sweep submitted, and that are not done yet, their SLURM job back.

    By run folder: another order on the command line numbers the jobs anew.
    """
    submitted = {entry["slurm_run"]: entry["slurm_job"] for entry in read_sweep(sweep)["jobs"] if "slurm_run" in entry}
    if not submitted:
        return
    from submitit import SlurmJob

    queued = jobs_in_queue() or {}
    for job in jobs:
        number = submitted.get(str(job.folder))
        if not job.finished and number in queued:
            job.slurm = SlurmJob(folder=sweep / "slurm" / "%j", job_id=number, tasks=[0])


def note_slurm_jobs(sweep: Path, jobs: list[Job]) -> None:
    """Writes the SLURM jobs, with the run folders that they work for, into the sweep's file."""
    known = {job.number: job for job in jobs if job.slurm is not None}
    note_jobs(
        sweep,
        {number: {"slurm_job": job.slurm.job_id, "slurm_run": str(job.folder)} for number, job in known.items()},
    )
