"""`cluster=slurm`: the jobs of a sweep as a SLURM job array, through hydra-submitit-launcher.

What is ours over that launcher: every job's settings are checked before the first is submitted; finished jobs and jobs
that still are in the queue are not submitted again; the client may leave at once (`cluster.wait=false`); one failed
job loses no other; a failed job is a failed job to SLURM too, with one message in its log; no `sacct` is needed.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.utils import JobReturn, JobStatus, run_job
from omegaconf import OmegaConf

from mmadapter.cluster.after_job import write_page
from mmadapter.cluster.jobs import Job, attach_queued, note_slurm_jobs, swept
from mmadapter.cluster.waiting import Waiting
from mmadapter.config import RunConf, typed, validate
from mmadapter.errors import InputError
from mmadapter.runs.folder import is_finished, run_folder

CHECKOUT = Path(__file__).resolve().parents[2]
# SIGUSR2 tells a job to save, and ends a process that has no handler yet: kept back until `training.run` has one.
HOLD_AND_BECOME = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)

if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:  # the extra [cluster]
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    class SlurmJobs(SlurmLauncher):
        """Submits the jobs of a sweep, and runs one of them in the job."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Submits what is neither finished nor queued; waits for all, unless cluster.wait=false.

            Raises InputError, before anything is submitted, for settings that a job would refuse.
            """
            assert self.config is not None
            if self.config.dry_run:
                raise InputError("dry_run=true submits nothing. Add cluster=local.")
            jobs = [self._checked(number, list(one)) for number, one in enumerate(job_overrides, initial_job_idx)]
            sweep = Path(str(self.config.hydra.sweep.dir))
            attach_queued(sweep, Path(str(self.config.runs_root)), jobs)
            self._submit([job for job in jobs if job.waits])
            note_slurm_jobs(sweep, jobs)
            print("\n".join(job.line(swept(jobs)) for job in jobs), flush=True)
            if not self.config.cluster.wait:
                print("Not waiting: the same command again waits, shows what is finished, and submits what is missing.")
                return [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED) for job in jobs]
            results = [self._shown(job) if job.finished else None for job in jobs]
            waited = Waiting([job for job in jobs if not job.finished]).result()
            return [result or waited[job.number] for job, result in zip(jobs, results, strict=True)]

        def __call__(self, sweep_overrides: list[str], *rest: Any) -> JobReturn:
            """One job, on the cluster. What fails is told to the client and ends with status 2 (bad input) or 1."""
            from submitit import JobEnvironment

            assert self.config is not None
            # what re-creates this one job without a cluster: run folders note their command
            sys.argv = ["train.py", *(word for word in sweep_overrides if not word.startswith(("cluster", "sweep.")))]
            result = super().__call__(sweep_overrides, *rest)
            try:
                if result.status is JobStatus.FAILED:
                    _fail(result)
                return result
            finally:  # the error is told first: SLURM may end the job once other processes have ended
                if JobEnvironment().global_rank == 0:
                    write_page(Path(str(self.config.hydra.sweep.dir)))

        def _composed(self, job: list[str]) -> Any:
            assert self.hydra_context is not None and self.config is not None
            return self.hydra_context.config_loader.load_sweep_config(self.config, job)

        def _checked(self, number: int, overrides: list[str]) -> Job:
            conf = typed(self._composed(overrides), RunConf)
            try:
                validate(conf)
            except InputError as error:
                raise InputError(f"job {number} ({' '.join(overrides)}): {error}\n  Nothing was submitted.") from None
            folder = run_folder(conf)
            return Job(number, overrides, folder, finished=is_finished(folder, conf))

        def _submit(self, jobs: list[Job]) -> None:
            if not jobs:
                return
            from hydra.core.singleton import Singleton
            from submitit.core.utils import FailedJobError

            state = Singleton.get_state()
            arguments = [(job.overrides, "hydra.sweep.dir", job.number, str(job.number), state) for job in jobs]
            executor = self._executor()
            try:
                submitted = executor.map_array(self, *zip(*arguments, strict=True))
            except (FailedJobError, subprocess.CalledProcessError) as error:
                raise InputError(f"cluster=slurm: SLURM did not take the jobs: {_last_line(error)}") from error
            for job, slurm in zip(jobs, submitted, strict=True):
                job.slurm = slurm

        def _executor(self) -> Any:
            import submitit

            if shutil.which("sbatch") is None:
                raise InputError(
                    "cluster=slurm: there is no `sbatch` on this machine. Start the sweep where jobs can be submitted, "
                    "or run it here with cluster=local."
                )
            settings = dict(self.params)
            executor = submitit.AutoExecutor(
                cluster="slurm",
                folder=settings.pop("submitit_folder"),
                slurm_max_num_timeout=settings.pop("max_num_timeout"),
                slurm_python=shlex.join([sys.executable, "-IS", "-c", HOLD_AND_BECOME]),
            )
            common = set(OmegaConf.structured(BaseQueueConf).keys())
            # a job unpickles this class: it must find the checkout wherever the sweep was started
            settings["setup"] = [f'export PYTHONPATH="{CHECKOUT}:$PYTHONPATH"', *(settings["setup"] or [])]
            executor.update_parameters(
                **{name if name in common else f"slurm_{name}": value for name, value in settings.items()}
            )
            return executor

        def _shown(self, job: Job) -> JobReturn:
            """A finished job's results, shown here: the run does no more than that."""
            assert self.hydra_context is not None and self.task_function is not None
            config = self._composed(job.overrides)
            OmegaConf.set_struct(config, False)
            config.hydra.job.num, config.hydra.job.id = job.number, str(job.number)
            return run_job(self.task_function, config, "hydra.sweep.dir", "hydra.sweep.subdir", self.hydra_context)


def _fail(result: JobReturn) -> NoReturn:
    """Ends a failed job: the error into its log and to the client, a status that SLURM calls FAILED."""
    from submitit import JobEnvironment
    from submitit.core.utils import cloudpickle_dump, temporary_save_path

    error = result._return_value
    if isinstance(error, InputError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        result.return_value = RuntimeError(f"{type(error).__name__}: {error}")  # it may not bear pickling
    with temporary_save_path(JobEnvironment().paths.result_pickle) as unfinished:
        cloudpickle_dump(("success", result), unfinished)
    sys.exit(2 if isinstance(error, InputError) else 1)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "sbatch: error" in line]
    return (said or lines or [type(error).__name__])[-1].strip()
