"""`cluster=slurm`: the jobs of a sweep as a SLURM job array, through hydra-submitit-launcher.

What it adds to that launcher: finished jobs, and jobs that still are in the queue, are not submitted again; the client
may leave at once (`cluster.wait=false`); it waits without `sacct`; one failed job loses no other, has one message in
its log, and is FAILED for SLURM too.
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf

from mmadapter.config import CHECKOUT
from mmadapter.errors import InputError, printable, text_of
from mmadapter.files import read_json, write_json
from mmadapter.runs.state import RunFolder, jobs_in_queue
from mmadapter.runs.sweep import SWEEP_FILE, begin_sweep, located_run, note_jobs, read_sweep, sweeps_in
from mmadapter.sweeps.job import Job, job_of
from mmadapter.terminal import own_command

# SIGUSR2 tells a job to save, and ends a process that has no handler yet: blocked until the run has one.
HOLD_AND_BECOME = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
FAILED_FILE = "failed.json"  # beside a job's log
FILE_SECONDS = 1  # between two looks at the files of jobs; nothing can wait for a file on a shared disk
QUEUE_SECONDS = 20  # between two questions to the controller, which serves everybody
LATE_SECONDS = 20  # a shared disk may show a file that long after its job is gone


class SlurmJobs(SlurmLauncher):
    """Submits the jobs of a sweep and waits for them; runs one of them in the job."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits what is neither finished nor queued; waits for all, unless cluster.wait=false."""
        config, context = self.config, self.hydra_context
        assert config is not None and context is not None
        if config.dry_run:
            raise InputError("dry_run=true submits nothing. Add cluster=local.")
        sweep, runs_root = Path(str(config.hydra.sweep.dir)), Path(str(config.runs_root))
        numbered = enumerate(job_overrides, initial_job_idx)
        jobs = [job_of(number, list(words), context, config) for number, words in numbered]
        finished = {job.number for job in jobs if job.is_finished()}
        open_jobs = [job for job in jobs if job.number not in finished]

        if not (sweep / SWEEP_FILE).is_file():  # a sweeper of somebody else writes none
            begin_sweep(sweep, own_command(), [])
        note_jobs(sweep, {job.number: {"overrides": job.words, "run": str(job.folder)} for job in jobs})
        find_in_queue(sweep, runs_root, open_jobs)
        self._submit([job for job in open_jobs if job.slurm_job is None])
        note_slurm_jobs(sweep, open_jobs)

        common = set.intersection(*(set(job.words) for job in jobs)) if len(jobs) > 1 else set()
        for job in jobs:
            own = " ".join(word for word in job.words if word not in common)
            state = "finished" if job.number in finished else f"SLURM job {job.slurm_job}"
            print("  ".join(word for word in (f"job {job.number}: {state}", own, str(job.folder)) if word))
        if not config.cluster.wait:
            print("Not waiting: the same command again waits, shows what is finished, and submits what is missing.")
            return [JobReturn(overrides=job.words, status=JobStatus.COMPLETED) for job in jobs]
        sys.stdout.flush()
        failed, results = wait_for(open_jobs), []
        for job in jobs:
            error = failed.get(job.number)
            result = JobReturn(overrides=job.words, status=JobStatus.COMPLETED if error is None else JobStatus.FAILED)
            result.return_value = error
            if error is None and job.metric is not None:  # for other sweepers than ours
                result.return_value = RunFolder(job.folder).metric(job.metric)
            results.append(result)
        return results

    def __call__(self, sweep_overrides: list[str], *rest: Any) -> JobReturn:
        """One job, on the cluster. One that fails ends with status 2 (bad input) or 1, and leaves its message."""
        from submitit import JobEnvironment  # takes half a second, which only jobs need

        # the command that re-creates this one run without a cluster: run folders note it
        sys.argv = [
            "mmadapter train",
            *(word for word in sweep_overrides if not word.startswith(("cluster", "sweep."))),
        ]
        result = super().__call__(sweep_overrides, *rest)
        if result.status is not JobStatus.FAILED:
            return result
        error = result._return_value
        bad_input = isinstance(error, InputError)
        if bad_input:
            print(f"error: {printable(str(error))}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        left = {"message": text_of(error), "bad_input": bad_input}
        write_json(JobEnvironment().paths.folder / FAILED_FILE, left)
        sys.exit(2 if bad_input else 1)

    def _submit(self, jobs: list[Job]) -> None:
        """Submits these jobs as one array. Raises InputError where SLURM does not take them."""
        if not jobs:
            return
        import submitit
        from submitit.core.utils import FailedJobError

        if shutil.which("sbatch") is None:
            raise InputError(
                "cluster=slurm: there is no `sbatch` on this machine. Start the sweep where jobs can be submitted, "
                "or run it here with cluster=local."
            )
        settings = dict(self.params)
        executor = submitit.AutoExecutor(
            cluster="slurm",
            folder=settings.pop("submitit_folder"),
            slurm_python=shlex.join([sys.executable, "-IS", "-c", HOLD_AND_BECOME]),
        )
        del settings["max_num_timeout"]  # of submitit's own way to requeue, for which the run does not ask
        if CHECKOUT is not None:  # a job unpickles this class: it must find the checkout wherever the sweep was started
            path = f'export PYTHONPATH={shlex.quote(str(CHECKOUT))}:"$PYTHONPATH"'
            settings["setup"] = [path, *(settings["setup"] or [])]
        settings["srun_args"] = ["--kill-on-bad-exit=1"]  # one rank that dies ends the others
        common = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(
            **{name if name in common else f"slurm_{name}": value for name, value in settings.items()}
        )
        state = Singleton.get_state()
        arguments = [(job.words, "hydra.sweep.dir", job.number, str(job.number), state) for job in jobs]
        try:
            submitted = executor.map_array(self, *zip(*arguments, strict=True))
        except (FailedJobError, subprocess.CalledProcessError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            said = [line for line in lines if "sbatch: error" in line] or lines
            raise InputError(f"cluster=slurm: SLURM did not take the jobs: {said[-1].strip()}") from error
        for job, slurm in zip(jobs, submitted, strict=True):
            job.slurm_job, job.log = slurm.job_id, slurm.task(0).paths.stdout


def find_in_queue(sweep: Path, runs_root: Path, jobs: list[Job]) -> None:
    """Gives open jobs that still are in SLURM's queue their number there, whichever sweep has submitted them.

    By run folder: another order on the command line numbers the jobs anew, and is another sweep. A sweep that cannot be
    read is named and left out. Raises InputError where some were submitted, and SLURM does not say whether they still
    are in the queue.
    """
    submitted: dict[Path, list[tuple[str, str | None]]] = {}  # run folder -> (SLURM job, its log) of all its jobs
    for folder in [sweep, *(other for other in sweeps_in(runs_root) if other.resolve() != sweep.resolve())]:
        try:
            noted = read_sweep(folder)["jobs"]
        except InputError as error:
            if folder == sweep:
                raise
            print(f"warning: jobs of another sweep are not looked at: {error}", file=sys.stderr)
            continue
        for entry in noted:
            if (run := located_run(folder, entry.get("slurm_run"))) is not None:
                submitted.setdefault(run.resolve(), []).append((entry["slurm_job"], entry.get("slurm_log")))
    known = [job for job in jobs if job.folder.resolve() in submitted]
    if not known:
        return
    queue = jobs_in_queue()
    if queue is None:
        raise InputError(
            f"cluster=slurm: SLURM's queue does not answer; nothing was submitted; give the command again. "
            f"{len(known)} of the {len(jobs)} open jobs were submitted before, and may still wait or run."
        )
    for job in known:
        for slurm_job, log in submitted[job.folder.resolve()]:
            if slurm_job in queue:
                job.slurm_job, job.log = slurm_job, None if log is None else Path(log)


def note_slurm_jobs(sweep: Path, jobs: list[Job]) -> None:
    """Writes the SLURM jobs, the run folders that they work for, and their logs into the sweep's file."""
    facts = {}
    for job in (one for one in jobs if one.slurm_job is not None):
        log = None if job.log is None else str(job.log)
        facts[job.number] = {"slurm_job": job.slurm_job, "slurm_run": str(job.folder), "slurm_log": log}
    note_jobs(sweep, facts)


def wait_for(jobs: list[Job]) -> dict[int, Exception]:
    """Waits until every job is finished, has failed, or has left the queue; the number of each failed job -> why.

    A requeued job is in the queue. Ctrl-C ends the waiting, not the jobs.
    """
    failed: dict[int, Exception] = {}
    waiting, gone_since, asked = list(jobs), dict[int, float](), -math.inf
    try:
        while waiting:
            if time.monotonic() - asked >= QUEUE_SECONDS:
                queue, asked = jobs_in_queue(), time.monotonic()
                if queue is not None:  # no answer says nothing about any job
                    still_gone = [job.number for job in waiting if job.slurm_job not in queue]
                    gone_since = {number: gone_since.get(number, asked) for number in still_gone}
            for job in list(waiting):
                ended = f"is finished: {job.folder}"
                if not job.is_finished():
                    ended = "failed"
                    if job.log is not None and (left := read_json(job.log.with_name(FAILED_FILE))) is not None:
                        failed[job.number] = (InputError if left["bad_input"] else RuntimeError)(left["message"])
                    elif asked - gone_since.get(job.number, asked) >= LATE_SECONDS:
                        lost = "it left the queue without a result: cancelled, or killed from outside"
                        failed[job.number] = RuntimeError(lost)
                    else:
                        continue
                waiting.remove(job)
                print(f"job {job.number} {ended}; its log: {job.log}", flush=True)
            if waiting:
                time.sleep(FILE_SECONDS)
    except KeyboardInterrupt:
        numbers = sorted({str(job.slurm_job).partition("_")[0] for job in waiting})
        print("No longer waiting; the jobs go on, and the same command waits for them again.")
        print(f"To end them: scancel {' '.join(numbers)}", flush=True)
        raise
    return failed
