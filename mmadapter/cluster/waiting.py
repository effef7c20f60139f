"""Waiting for the jobs of a sweep, without `sacct`: by their result files and by the queue."""

from __future__ import annotations

import time
from collections.abc import Collection

from hydra.core.utils import JobReturn, JobStatus

from mmadapter.cluster.jobs import Job
from mmadapter.runs.queue import jobs_in_queue

FILE_SECONDS = 1  # a look at the result files; nothing can wait for a file on a shared disk
QUEUE_SECONDS = 20  # a question to the controller, which serves everybody
LATE_SECONDS = 20  # a shared disk may show a file that long after its job is gone


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
            print("No longer waiting; the jobs go on, and the same command waits for them again.")
            print(f"To end them: scancel {' '.join(numbers)}", flush=True)
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

    def _is_gone(self, job: Job, queued: Collection[str]) -> bool:
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
    """Says how a job ended, and where its log is."""
    ended = f"is finished: {job.folder}" if result.status is JobStatus.COMPLETED else "failed"
    print(f"job {job.number} {ended}; its log: {job.slurm.task(0).paths.stdout}", flush=True)
    return result
