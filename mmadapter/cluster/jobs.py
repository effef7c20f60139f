"""The jobs of a sweep as the client sees them: what is finished, what an earlier start has submitted, what is to do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.runs.queue import jobs_in_queue
from mmadapter.runs.sweep_file import note_jobs, read_sweep, run_of, sweeps_in


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


def attach_queued(sweep: Path, runs_root: Path, jobs: list[Job]) -> None:
    """Gives jobs that are in SLURM's queue, and not done yet, their SLURM job back, whichever sweep submitted it.

    By run folder: another order on the command line numbers the jobs anew, and is another sweep. Raises InputError
    where an earlier start submitted some, and SLURM does not say whether they still are in the queue.
    """
    submitted = submitted_by_any(sweep, runs_root)
    open_jobs = [job for job in jobs if not job.finished and job.folder.resolve() in submitted]
    if not open_jobs:
        return
    from submitit import SlurmJob

    queued = jobs_in_queue()
    if queued is None:
        raise InputError(
            f"cluster=slurm: SLURM's queue does not answer; nothing was submitted; give the command again. "
            f"{len(open_jobs)} of the {len(jobs)} jobs were submitted before, and may still wait or run."
        )
    for job in open_jobs:
        found = [slurm for slurm in submitted[job.folder.resolve()] if slurm[1] in queued]
        if found:
            folder, number = max(
                found, key=lambda slurm: (slurm[0] / slurm[1]).is_dir()
            )  # where submitit has its files
            job.slurm = SlurmJob(folder=folder / "%j", job_id=number, tasks=[0])


def submitted_by_any(sweep: Path, runs_root: Path) -> dict[Path, list[tuple[Path, str]]]:
    """What this sweep and all others below `runs_root` have noted. One that cannot be read is named and left out."""
    found = submitted_before(sweep)
    for other in sweeps_in(runs_root):
        if other.resolve() == sweep.resolve():
            continue
        try:
            noted = submitted_before(other)
        except InputError as error:  # damaged, or taken away at this moment
            print(f"warning: jobs of another sweep are not looked at: {error}", file=sys.stderr)
            continue
        for run, jobs in noted.items():
            found.setdefault(run, []).extend(jobs)
    return found


def submitted_before(sweep: Path) -> dict[Path, list[tuple[Path, str]]]:
    """Run folder -> (folder of submitit's files, SLURM job) of all SLURM jobs that a sweep has noted for it.

    A sweep that found a job of another one in the queue has noted it too, and has no files of it.
    """
    found: dict[Path, list[tuple[Path, str]]] = {}
    for entry in read_sweep(sweep)["jobs"]:
        if (run := run_of(sweep, {"run": entry.get("slurm_run")})) is not None:
            found.setdefault(run.resolve(), []).append((sweep / "slurm", entry["slurm_job"]))
    return found


def note_slurm_jobs(sweep: Path, jobs: list[Job]) -> None:
    """Writes the SLURM jobs, with the run folders that they work for, into the sweep's file."""
    known = {job.number: job for job in jobs if job.slurm is not None}
    note_jobs(
        sweep,
        {number: {"slurm_job": job.slurm.job_id, "slurm_run": str(job.folder)} for number, job in known.items()},
    )
