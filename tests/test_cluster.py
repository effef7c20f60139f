"""cluster=slurm without a SLURM: what it refuses, and how it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmadapter.cluster.after_job import write_page
from mmadapter.cluster.jobs import Job, attach_queued, note_slurm_jobs, swept
from mmadapter.config import validate
from mmadapter.errors import InputError
from mmadapter.runs.sweep_file import begin_sweep
from tests.config.composing import run_conf
from tests.made_runs import made_sweep

CHECKOUT = Path(__file__).parents[1]


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
    """`python train.py ARGUMENTS`, without the module `hidden`."""
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
        (["cluster=slurm"], {}, "error: cluster=slurm submits with -m only: python train.py -m cluster=slurm"),
        (["-m", "cluster=slurm"], {"PATH": "/nowhere"}, "error: cluster=slurm: there is no `sbatch` on this machine"),
        (["-m", "cluster=slurm"], {"hidden": "hydra_plugins.hydra_submitit_launcher"}, "pip install -e '.[cluster]'"),
        (["-m", "cluster=slurm", "dry_run=true"], {}, "error: dry_run=true submits nothing"),
        (["-m", "cluster=slurm", "optimizer.micro_batch_size=5"], {}, "Nothing was submitted"),
    ],
)
def test_one_message_and_status_2_where_nothing_can_be_submitted(tmp_path, arguments, keywords, message):
    told = train(tmp_path, *arguments, **keywords)
    assert told.returncode == 2, told.stderr
    assert message in told.stderr and "Traceback" not in told.stderr
    assert told.stderr.count("error: ") == 1


def test_what_only_some_jobs_have_is_what_was_swept():
    jobs = [Job(number, ["seed=1", f"adapter.prompts.layers={number}"], Path("r"), True) for number in (2, 3)]
    assert swept(jobs) == {"adapter.prompts.layers=2", "adapter.prompts.layers=3"}
    assert swept(jobs[:1]) == set()


def say(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """From now on `squeue` does this."""
    squeue = folder / "bin" / "squeue"
    squeue.parent.mkdir(exist_ok=True)
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")


def submitted(root: Path, name: str = "first") -> tuple[Path, list[Job]]:
    """A sweep whose two jobs, 12_0 and 12_1, a start has submitted."""
    sweep = root / "sweeps" / name
    begin_sweep(sweep, "python train.py -m seed=0,1")
    jobs = [Job(number, [f"seed={number}"], root / f"run-{number}", False) for number in (0, 1)]
    for job in jobs:
        job.slurm = type("Submitted", (), {"job_id": f"12_{job.number}"})()
        (sweep / "slurm" / job.slurm.job_id).mkdir(parents=True)
    note_slurm_jobs(sweep, jobs)
    return sweep, jobs


def test_jobs_in_the_queue_are_found_again_under_another_number(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    sweep, (first, second) = submitted(tmp_path)
    say(tmp_path, monkeypatch, "echo '12_1|PENDING|Resources'")
    turned = [Job(0, ["seed=1"], second.folder, False), Job(1, ["seed=0"], first.folder, False)]
    attach_queued(sweep, tmp_path, turned)
    assert turned[0].slurm.job_id == "12_1" and not turned[0].waits
    assert turned[1].slurm is None and turned[1].waits


def test_jobs_that_another_sweep_submitted_are_not_submitted_again(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    first, _ = submitted(tmp_path)
    say(tmp_path, monkeypatch, "echo '12_0|RUNNING|None'; echo '12_1|PENDING|Resources'")
    wider = tmp_path / "sweeps" / "a-wider-one"
    for _ in range(2):  # the second start finds what the first one has noted, too
        begin_sweep(wider, "python train.py -m seed=0,1,2")
        jobs = [Job(number, [f"seed={number}"], tmp_path / f"run-{number}", False) for number in (0, 1, 2)]
        attach_queued(wider, tmp_path, jobs)
        assert [job.waits for job in jobs] == [False, False, True]
        result = jobs[1].slurm.task(0).paths.result_pickle
        assert result.parent == first / "slurm" / "12_1", "its files are where they were when it was submitted"
        note_slurm_jobs(wider, jobs)


def test_a_damaged_file_of_another_sweep_is_named_and_keeps_nobody_waiting(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    sweep, (first, _) = submitted(tmp_path)
    (tmp_path / "sweeps" / "other").mkdir()
    (tmp_path / "sweeps" / "other" / "sweep.json").write_text("{")
    say(tmp_path, monkeypatch, "echo '12_0|PENDING|Resources'")
    again = Job(0, ["seed=0"], first.folder, False)
    attach_queued(sweep, tmp_path, [again])
    assert not again.waits and "other/sweep.json is damaged" in capsys.readouterr().err


def test_nothing_is_submitted_while_the_queue_does_not_answer(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    sweep, jobs = submitted(tmp_path)
    say(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
    again = [Job(job.number, job.overrides, job.folder, False) for job in jobs]
    with pytest.raises(InputError, match="queue does not answer; nothing was submitted; give the command again"):
        attach_queued(sweep, tmp_path, again)
    attach_queued(sweep, tmp_path, [Job(0, [], jobs[0].folder, True)])  # finished: nothing to ask for
    attach_queued(sweep, tmp_path, [Job(0, [], tmp_path / "another", False)])  # never submitted


def test_a_job_writes_the_page_of_its_sweep_and_survives_a_failure(tmp_path, capfd):
    sweep = made_sweep(tmp_path, {"seed=0": ("finished", 50), "seed=1": ("finished", 60)})
    write_page(sweep)
    assert (sweep / "sweep.csv").read_text().count("finished") == 2 and (sweep / "sweep.html").is_file()
    assert capfd.readouterr().err == ""
    (sweep / "sweep.json").write_text("{")
    write_page(sweep)
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and f"python -m mmadapter.runs sweep {sweep}" in told


def test_a_jobs_own_command_is_that_of_one_run_without_a_cluster(monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    from hydra_plugins.mmadapter_slurm.launcher import SlurmJobs

    def end_here(*_):
        raise EOFError

    monkeypatch.setattr(SlurmJobs.__base__, "__call__", end_here, raising=False)
    monkeypatch.setattr(sys, "argv", ["pickled"])
    job = SlurmJobs.__new__(SlurmJobs)
    job.config = OmegaConf.create()
    with pytest.raises(EOFError):
        job(["seed=1", "cluster=slurm", "cluster.wait=true", "sweep.metric=scienceqa.Avg"])
    assert sys.argv == ["train.py", "seed=1"]
