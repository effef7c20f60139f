"""cluster=slurm without a SLURM: what it refuses, and how it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmadapter.cluster.jobs import Job, attach_queued, note_slurm_jobs, swept
from mmadapter.config import validate
from mmadapter.errors import InputError
from tests.config.composing import run_conf

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
        (["-m", "cluster=slurm", "optimizer.micro_batch_size=4,5"], {}, "Nothing was submitted"),
    ],
)
def test_one_message_and_status_2_where_nothing_can_be_submitted(tmp_path, arguments, keywords, message):
    told = train(tmp_path, *arguments, **keywords)
    assert told.returncode == 2, told.stderr
    assert message in told.stderr and "Traceback" not in told.stderr
    assert told.stderr.count("error: ") == 1


def test_what_only_some_jobs_have_is_what_was_swept():
    jobs = [Job(number, ["seed=1", f"adapter.layers={number}"], Path("r"), True) for number in (2, 3)]
    assert swept(jobs) == {"adapter.layers=2", "adapter.layers=3"}
    assert swept(jobs[:1]) == set()


def test_jobs_in_the_queue_are_found_again_under_another_number(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": []}))
    first, second = (Job(number, [f"seed={number}"], tmp_path / f"run-{number}", False) for number in (0, 1))
    for job in (first, second):
        job.slurm = type("Submitted", (), {"job_id": f"12_{job.number}"})()
    note_slurm_jobs(tmp_path, [first, second])
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho '12_1|PENDING|Resources'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    turned = [Job(0, ["seed=1"], second.folder, False), Job(1, ["seed=0"], first.folder, False)]
    attach_queued(tmp_path, turned)
    assert turned[0].slurm.job_id == "12_1" and not turned[0].waits
    assert turned[1].slurm is None and turned[1].waits
