"""What fails on a cluster fails early, alone, with one message, and is called failed by SLURM too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.sweeps.slurm.cluster import CHECKOUT, wait_until
from tests.sweeps.slurm.tiny_sweep import log_of, settings, submit, sweep_jobs

pytestmark = pytest.mark.slurm
SHORT = ["optimizer.epochs=2", "evaluate=[]"]


def test_a_job_with_bad_data_fails_with_its_message_and_the_others_go_on(cluster, inputs, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(inputs / "world", broken)
    (broken / "scienceqa" / "problems.json").write_text("{")
    arguments = [*settings(inputs, *SHORT), f"data.root={inputs / 'world'},{broken}"]
    told = cluster.train(tmp_path, "-m", "cluster=slurm", *arguments)
    good, bad = sweep_jobs(tmp_path)
    assert told.returncode == 2, told.stdout + told.stderr
    assert "problems.json" in told.stdout + told.stderr and "Traceback" not in told.stdout + told.stderr
    assert (tmp_path / good["run"] / "finished.json").is_file()
    log = log_of(tmp_path, bad["slurm_job"])
    assert log.count("error: ") == 1 + log.count("srun: error: ") and "Traceback" not in log, log
    cluster.wait_until_gone([good["slurm_job"], bad["slurm_job"]])
    state = cluster.job(bad["slurm_job"])
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0")
    assert cluster.job(good["slurm_job"])["JobState"] == "COMPLETED"


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["optimizer.micro_batch_size=4,5"], "optimizer.micro_batch_size=5 does not divide"),
        (["cluster.partition=nosuch"], "SLURM did not take the jobs: .*Invalid partition"),
        (["cluster.tasks_per_node=2"], "engine=single is one process"),
        (["cluster.timeout_min=1"], "cluster.signal_delay_s=120: must be less than the time limit"),
        (["resume=never"], "resume=never with cluster=slurm"),
        (["launch.processes=2", "engine=zero1"], "cluster.tasks_per_node=2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(cluster, inputs, tmp_path, arguments, message):
    told = cluster.train(tmp_path, "-m", "cluster=slurm", *settings(inputs), *arguments)
    assert told.returncode == 2
    assert told.stderr.count("error: ") >= 1 and "Traceback" not in told.stderr
    assert re.search(message, told.stderr), told.stderr
    assert cluster.queued() == []


def test_the_same_sweep_submits_no_job_twice_and_a_cancelled_job_is_noticed(cluster, inputs, tmp_path):
    arguments = [*settings(inputs, *SHORT), "seed=0,1", "+cluster.additional_parameters.hold=true"]
    numbers = submit(cluster, tmp_path, *arguments)
    assert submit(cluster, tmp_path, *arguments) == numbers
    turned = [word.replace("seed=0,1", "seed=1,0") for word in arguments]  # another sweep of the same runs
    assert submit(cluster, tmp_path, *turned) == {0: numbers[1], 1: numbers[0]}
    assert len(cluster.queued()) == 2
    command = [sys.executable, str(CHECKOUT / "train.py"), "-m", "cluster=slurm", *arguments]
    waiting = subprocess.Popen(command, cwd=tmp_path, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert waiting.stdout is not None
        lines = [waiting.stdout.readline() for _ in numbers]
        assert all(any(number in line for line in lines) for number in numbers.values())
        cluster.call("scancel", *numbers.values())
        wait_until(lambda: waiting.poll() is not None, 120, "the client to notice")
        assert waiting.returncode == 1
        assert "without a result" in waiting.stdout.read()
    finally:
        waiting.kill()


def test_without_m_nothing_is_run_here_by_mistake(cluster, inputs, tmp_path):
    began = time.monotonic()
    told = cluster.train(tmp_path, "cluster=slurm", *settings(inputs))
    assert told.returncode == 2 and "mmadapter train -m cluster=slurm" in told.stderr
    assert time.monotonic() - began < 30
