"""cluster=slurm without a SLURM: what it refuses, and how it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.runs.sweep import begin_sweep
from mmadapter.sweeps.job import Job
from tests.config.composing import run_conf
from tests.made_runs import made_run

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "overrides,message",
    [
        (["cluster.timeout_min=2"], "cluster.signal_delay_s=120: must be less than the time limit"),
        (["cluster.nodes=2", "cluster.tasks_per_node=4"], "engine=single is one process, but .* are 8"),
        (["engine=zero1", "launch.processes=4"], "cluster.tasks_per_node=4"),
        (["engine=zero1", "cluster.nodes=40"], "optimizer.batch_size=32 is shared out over 40 processes"),
        (["resume=never"], "would begin anew each time"),
        (["cluster.nodes=0"], "cluster.nodes=0: must be at least 1"),
    ],
)
def test_what_cannot_work_on_a_cluster_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        validate(run_conf("cluster=slurm", *overrides))


def test_where_jobs_are_submitted_needs_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flex = ["cluster=slurm", "host.attention=flex"]
    validate(run_conf(*flex))
    with pytest.raises(InputError, match="flex needs a GPU"):
        validate(run_conf(*flex, "engine.device=cpu"))


def test_a_cluster_changes_nothing_for_a_run_on_this_machine():
    validate(run_conf("cluster.nodes=2"))


def train(folder: Path, *arguments: str, hidden: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`mmadapter train ARGUMENTS`, without the module `hidden`."""
    code = (
        f"import runpy, sys; {f'sys.modules[{hidden!r}] = None; ' if hidden else ''}sys.argv[0] = 'train.py'; "
        f"sys.path.insert(0, {str(CHECKOUT)!r}); runpy.run_path({str(CHECKOUT / 'train.py')!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=folder, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments,keywords,message",
    [
        (["cluster=slurm"], {}, "error: cluster=slurm submits with -m only: mmadapter train -m cluster=slurm"),
        (["-m", "cluster=slurm"], {"PATH": "/nowhere"}, "error: cluster=slurm: there is no `sbatch` on this machine"),
        (
            ["-m", "cluster=slurm"],
            {"hidden": "hydra_plugins.hydra_submitit_launcher"},
            "pip install 'hydra-submitit-launcher>=1.2'",
        ),
        (["-m", "cluster=slurm", "dry_run=true"], {}, "error: dry_run=true submits nothing"),
        (["-m", "cluster=slurm", "optimizer.micro_batch_size=5,7"], {}, "micro_batch_size=7 does not divide"),
    ],
)
def test_one_message_and_status_2_where_nothing_can_be_submitted(tmp_path, arguments, keywords, message):
    told = train(tmp_path, *arguments, **keywords)
    assert told.returncode == 2, told.stderr
    assert message in told.stderr and "Traceback" not in told.stderr
    assert told.stderr.count("error: ") == 1


@pytest.fixture
def launcher():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra [cluster]")
    from mmadapter.sweeps import launcher

    return launcher


def say(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """From now on `squeue` does this."""
    squeue = folder / "bin" / "squeue"
    squeue.parent.mkdir(exist_ok=True)
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")


def jobs_of(root: Path, *seeds: int):
    runs = [root / f"run-{seed}" for seed in seeds]
    words = [[f"seed={seed}"] for seed in seeds]
    return [Job(n, words[n], run, (run / "finished.json").is_file, "scienceqa.Avg") for n, run in enumerate(runs)]


def submitted(launcher, root: Path, name: str = "first"):
    """A sweep whose two jobs, 12_0 and 12_1, a start has submitted."""
    sweep = root / "sweeps" / name
    begin_sweep(sweep, "mmadapter train -m seed=0,1", ["seed"])
    jobs = jobs_of(root, 0, 1)
    for job in jobs:
        job.slurm_job, job.log = f"12_{job.number}", sweep / "slurm" / f"12_{job.number}" / "log.out"
        job.log.parent.mkdir(parents=True)
    launcher.note_slurm_jobs(sweep, jobs)
    return sweep, jobs


def test_jobs_in_the_queue_are_found_again_under_another_number(launcher, tmp_path, monkeypatch):
    sweep, _ = submitted(launcher, tmp_path)
    say(tmp_path, monkeypatch, "echo '12_1|PENDING|Resources'")
    turned = jobs_of(tmp_path, 1, 0)
    launcher.find_in_queue(sweep, tmp_path, turned)
    assert [job.slurm_job for job in turned] == ["12_1", None]


def test_jobs_that_another_sweep_submitted_are_not_submitted_again(launcher, tmp_path, monkeypatch):
    first, _ = submitted(launcher, tmp_path)
    say(tmp_path, monkeypatch, "echo '12_0|RUNNING|None'; echo '12_1|PENDING|Resources'")
    wider = tmp_path / "sweeps" / "a-wider-one"
    for _ in range(2):  # the second start finds what the first one has noted, too
        begin_sweep(wider, "mmadapter train -m seed=0,1,2", ["seed"])
        jobs = jobs_of(tmp_path, 0, 1, 2)
        launcher.find_in_queue(wider, tmp_path, jobs)
        assert [job.slurm_job for job in jobs] == ["12_0", "12_1", None]
        assert jobs[1].log == first / "slurm" / "12_1" / "log.out", "its log is where it was submitted"
        launcher.note_slurm_jobs(wider, jobs)


def test_a_damaged_file_of_another_sweep_is_named_and_keeps_nobody_waiting(launcher, tmp_path, monkeypatch, capsys):
    sweep, _ = submitted(launcher, tmp_path)
    (tmp_path / "sweeps" / "other").mkdir()
    (tmp_path / "sweeps" / "other" / "sweep.json").write_text("{")
    say(tmp_path, monkeypatch, "echo '12_0|PENDING|Resources'")
    again = jobs_of(tmp_path, 0)
    launcher.find_in_queue(sweep, tmp_path, again)
    assert again[0].slurm_job == "12_0" and "other/sweep.json is damaged" in capsys.readouterr().err


def test_nothing_is_submitted_while_the_queue_does_not_answer(launcher, tmp_path, monkeypatch):
    sweep, _ = submitted(launcher, tmp_path)
    say(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
    with pytest.raises(InputError, match="queue does not answer; nothing was submitted; give the command again"):
        launcher.find_in_queue(sweep, tmp_path, jobs_of(tmp_path, 0, 1))
    launcher.find_in_queue(sweep, tmp_path, jobs_of(tmp_path, 2))  # never submitted: nothing to ask for


def test_waiting_ends_with_finished_failed_and_lost_jobs(launcher, tmp_path, monkeypatch, capsys):
    """Job 0 is finished, job 1 has left an error, job 2 is gone from the queue; the queue knows of none of them."""
    sweep, jobs = submitted(launcher, tmp_path)
    lost = jobs_of(tmp_path, 0, 1, 2)[2]
    lost.slurm_job, lost.log = "12_2", sweep / "slurm" / "12_2" / "log.out"
    made_run(jobs[0].folder, "finished")
    jobs[1].log.with_name("failed.json").write_text('{"message": "no such file", "bad_input": true}')
    say(tmp_path, monkeypatch, "exit 0")
    for name in ("FILE_SECONDS", "QUEUE_SECONDS", "LATE_SECONDS"):
        monkeypatch.setattr(launcher, name, 0.05)
    failed = launcher.wait_for([*jobs, lost])
    assert list(failed) == [1, 2] and isinstance(failed[1], InputError) and str(failed[1]) == "no such file"
    assert isinstance(failed[2], RuntimeError) and "without a result" in str(failed[2])
    told = capsys.readouterr().out
    assert "job 0 is finished" in told and f"job 2 failed; its log: {lost.log}" in told


def test_a_job_that_waits_in_the_queue_is_waited_for(launcher, tmp_path, monkeypatch):
    _, jobs = submitted(launcher, tmp_path)
    answers = iter([{"12_0": ("PENDING", "")}] * 5)
    monkeypatch.setattr(launcher, "jobs_in_queue", lambda: next(answers, {}))
    for name in ("FILE_SECONDS", "QUEUE_SECONDS", "LATE_SECONDS"):
        monkeypatch.setattr(launcher, name, 0.01)
    assert list(launcher.wait_for(jobs[:1])) == [0]
    assert next(answers, None) is None, "it was asked for until the job was gone"


@pytest.mark.parametrize("error,status,bad_input", [(InputError("no data"), 2, True), (KeyError("bug"), 1, False)])
def test_a_failed_job_leaves_its_message_and_its_status(launcher, tmp_path, monkeypatch, error, status, bad_input):
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    monkeypatch.setattr(launcher.SlurmJobs.__base__, "__call__", lambda *_: result)
    monkeypatch.setattr(sys, "argv", ["pickled"])
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path), "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    job = launcher.SlurmJobs.__new__(launcher.SlurmJobs)
    with pytest.raises(SystemExit) as ended:
        job(["seed=1"])
    left = json.loads((tmp_path / "failed.json").read_text())
    assert ended.value.code == status and left["bad_input"] is bad_input and str(error) in left["message"]


def test_a_jobs_own_command_is_that_of_one_run_without_a_cluster(launcher, monkeypatch):
    def end_here(*_):
        raise EOFError

    monkeypatch.setattr(launcher.SlurmJobs.__base__, "__call__", end_here, raising=False)
    monkeypatch.setattr(sys, "argv", ["pickled"])
    job = launcher.SlurmJobs.__new__(launcher.SlurmJobs)
    job.config = OmegaConf.create()
    with pytest.raises(EOFError):
        job(["seed=1", "cluster=slurm", "cluster.wait=true", "sweep.metric=scienceqa.Avg"])
    assert sys.argv == ["mmadapter train", "seed=1"]


def test_a_checkout_and_folders_with_quotes_and_blanks_reach_the_job_as_they_are(launcher, tmp_path, monkeypatch):
    """`sbatch` keeps the script, which bash then runs; `srun` tells what it was given."""
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    odd = tmp_path / 'it\'s a "check out" $(touch ran) `touch ran`; touch ran'
    (odd / "bin").mkdir(parents=True)
    stand_ins = {"sbatch": f"cp \"$1\" {tmp_path}/script; echo 'Submitted batch job 12'"}
    stand_ins["srun"] = f'printf "%s\\0" "$PYTHONPATH" "$@" > {tmp_path}/told'
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.setattr(launcher, "CHECKOUT", odd)
    monkeypatch.setattr(sys, "executable", str(odd / "bin" / "python"))

    settings = OmegaConf.to_container(OmegaConf.structured(SlurmQueueConf))
    del settings["_target_"]
    folder = odd / "sweeps" / "first" / "slurm"
    jobs = jobs_of(odd, 0, 1)
    launcher.SlurmJobs(**settings | {"submitit_folder": str(folder / "%j"), "setup": ["export MINE=1"]})._submit(jobs)
    assert [job.slurm_job for job in jobs] == ["12_0", "12_1"] and jobs[1].log.parent == folder / "12_1"

    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["bash", "-e", tmp_path / "script"], cwd=work, check=True)
    path, *words = (tmp_path / "told").read_text().split("\0")[:-1]
    assert path == f"{odd}:before" and list(work.iterdir()) == []
    python = words.index(str(odd / "bin" / "python"))
    assert words[python:] == [
        *(str(odd / "bin" / "python"), "-IS", "-c", launcher.HOLD_AND_BECOME),
        *("-u", "-m", "submitit.core._submit", str(folder / "%j")),
    ]
    assert words[words.index("--output") + 1].startswith(f"{folder}/%A_%a/")
