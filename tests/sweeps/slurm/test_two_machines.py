"""One job of two processes on two nodes, with DeepSpeed, told to stop while it loads and while it trains."""

from __future__ import annotations

import json

import pytest

from tests.sweeps.slurm.cluster import wait_until
from tests.sweeps.slurm.tiny_sweep import CONTINUED, assert_same_result, hold_at, log_of, settings, submit, sweep_jobs

pytestmark = pytest.mark.slurm
TWO_NODES = ["engine=zero2", "cluster.nodes=2", "cluster.tasks_per_node=1", "optimizer.epochs=20"]


def test_a_job_on_two_nodes_is_requeued_once_and_ends_as_an_undisturbed_one(cluster, inputs, tmp_path):
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    jobs = {}
    for folder in (alone, disturbed):
        folder.mkdir()
        jobs[folder] = submit(cluster, folder, *settings(inputs, *TWO_NODES))[0]
    run = {folder: folder / sweep_jobs(folder)[0]["run"] for folder in jobs}
    job = jobs[disturbed]

    wait_until(lambda: log_of(disturbed, job).count("Starting with") == 2, 120, "both processes to start")
    cluster.call("scancel", "--signal=USR2", job)
    wait_until(lambda: int(cluster.job(job)["Restarts"]) == 1, 60, "the first requeue")
    hold_at({run[disturbed]: 60})
    cluster.call("scancel", "--signal=USR2", job)
    wait_until(lambda: int(cluster.job(job)["Restarts"]) == 2, 60, "the second requeue")

    cluster.wait_until_gone(list(jobs.values()))
    log = log_of(disturbed, job)
    assert (run[disturbed] / "finished.json").is_file(), log
    assert CONTINUED.search(log) and "Traceback" not in log, log
    assert int(cluster.job(job)["Restarts"]) == 2
    assert_same_result(run[disturbed], run[alone])
    assert json.loads((run[alone] / "versions.json").read_text())["processes"] == 2
