"""What SLURM's queue knows of a sweep's jobs, and waiting for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from mmadapter.cluster.jobs import Job, say

SWEEP_FILE = "sweep.json"
FILE_SECONDS = 1  # a look at the result files; nothing can wait for a file on a shared disk
QUEUE_SECONDS = 20  # a question to the controller, which serves everybody
LATE_SECONDS = 20  # a shared disk may show a file that long after its job is gone


def jobs_in_queue() -> set[str] | None:
    """Numbers ("12", "12_3") of this user's jobs that wait, run or end; None where the controller does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(told.stdout.split())


def attach_queued(sweep: Path, jobs: list[Job]) -> None:
    """Gives jobs that an earlier start of this sweep submitted, and that are not done yet, their SLURM job back."""
    submitted = {
        tuple(entry["overrides"]): entry["slurm_job"] for entry in read(sweep)["jobs"] if entry.get("slurm_job")
    }
    if not submitted:
        return
    from submitit import SlurmJob

    queued = jobs_in_queue() or set()
    for job in jobs:
        number = submitted.get(tuple(job.overrides))
        if not job.finished and number in queued:
            job.slurm = SlurmJob(folder=sweep / "slurm" / "%j", job_id=number, tasks=[0])


def read(sweep: Path) -> dict[str, Any]:
    """The sweep's file; without jobs where there is none."""
    file = sweep / SWEEP_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"jobs": []}


def record(sweep: Path, jobs: list[Job]) -> None:
    """Notes the SLURM jobs in the sweep's file, which is whole at every moment."""
    content = {"command": " ".join(["train.py", *sys.argv[1:]]), "created": now(), **read(sweep)}
    noted = {entry["number"]: entry for entry in content["jobs"]}
    for job in jobs:
        entry = noted.setdefault(job.number, {"number": job.number, "slurm_job": None})
        entry |= {"overrides": job.overrides, "run": str(job.folder)}
        if job.slurm is not None:
            entry["slurm_job"] = job.slurm.job_id
    content["jobs"] = [noted[number] for number in sorted(noted)]
    unfinished = sweep / f".{SWEEP_FILE}.writing"
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(sweep / SWEEP_FILE)


def now() -> str:
    """This moment, ISO 8601 with the time zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


class Waiting:
    """Waits until every job has left a result, or the queue without one; a requeued job is in the queue."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.results: dict[int, JobReturn] = {}  # by job number
        self.missing_since: dict[int, float] = {}
        self.asked = -float("inf")

    def result(self) -> dict[int, JobReturn]:
        """Job number -> what came of it. Ctrl-C ends the waiting, not the jobs."""
        try:
            while open_jobs := [job for job in self.jobs if job.number not in self.results]:
                self._look(open_jobs)
                if len(self.results) < len(self.jobs):
                    time.sleep(FILE_SECONDS)
        except KeyboardInterrupt:
            numbers = sorted({job.slurm.job_id.partition("_")[0] for job in open_jobs})
            say("No longer waiting; the jobs go on, and the same command waits for them again.")
            say(f"To end them: scancel {' '.join(numbers)}")
            raise
        return self.results

    def _look(self, jobs: list[Job]) -> None:
        queued = None
        if time.monotonic() - self.asked >= QUEUE_SECONDS:
            queued, self.asked = jobs_in_queue(), time.monotonic()
        for job in jobs:
            if job.slurm.task(0).paths.result_pickle.exists():
                self.results[job.number] = finished(job)
            elif queued is not None and self._is_gone(job, queued):
                self.results[job.number] = lost(job)

    def _is_gone(self, job: Job, queued: set[str]) -> bool:
        """Whether a job left the queue so long ago that its result would be here."""
        if job.slurm.job_id in queued:
            self.missing_since.pop(job.number, None)
            return False
        since = self.missing_since.setdefault(job.number, self.asked)
        return self.asked - since >= LATE_SECONDS


def finished(job: Job) -> JobReturn:
    """The result that a job has left."""
    try:
        result = job.slurm.task(0).result()
    except Exception as error:  # submitit's own: a job that could not be started, or was not requeued
        result = JobReturn(overrides=job.overrides, status=JobStatus.FAILED)
        result.return_value = RuntimeError(str(error))
    return told(job, result)


def lost(job: Job) -> JobReturn:
    """A job that left the queue without a result: cancelled, or killed."""
    result = JobReturn(overrides=job.overrides, status=JobStatus.FAILED)
    result.return_value = RuntimeError("it left the queue without a result: cancelled, or killed from outside")
    return told(job, result)


def told(job: Job, result: JobReturn) -> JobReturn:
    """Says how a job ended; an error gets the job's name and its log."""
    if result.status is JobStatus.COMPLETED:
        say(f"job {job.number} is finished: {job.folder}")
        return result
    error, log = result._return_value, job.slurm.task(0).paths.stdout
    say(f"job {job.number} ({' '.join(job.overrides)}) failed: {error}\n  its log: {log}")
    return result
