"""A sweep on a real SLURM, disturbed in every way, ends with the adapters of an undisturbed one."""

from __future__ import annotations

import pytest

from tests.sweeps.slurm.cluster import wait_until
from tests.sweeps.slurm.tiny_sweep import (
    CONTINUED,
    assert_same_result,
    hold_at,
    log_of,
    settings,
    submit,
    sweep_jobs,
)

pytestmark = pytest.mark.slurm
SEEDS = "seed=0,1,2,3"


def test_a_sweep_disturbed_in_every_way_ends_as_an_undisturbed_one(cluster, inputs, undisturbed, tmp_path):
    arguments = [*settings(inputs), SEEDS, "cluster.signal_delay_s=28"]
    numbers = submit(cluster, tmp_path, *arguments)
    jobs = sweep_jobs(tmp_path)
    runs = {number: tmp_path / jobs[number]["run"] for number in numbers}

    wait_until(lambda: "Starting with" in log_of(tmp_path, numbers[3]), 120, "job 3 to start")
    cluster.call("scancel", "--signal=USR2", numbers[3])  # while it loads
    cluster.call("scontrol", "update", f"jobid={numbers[1]}", "timelimit=2")  # a signal 90 s after the start
    hold_at({runs[0]: 70, runs[1]: 60, runs[2]: 90})
    cluster.call("scontrol", "requeue", numbers[0])
    cluster.take_node(cluster.job(numbers[2])["NodeList"])

    cluster.wait_until_gone(list(numbers.values()))
    for number, run in runs.items():
        log = log_of(tmp_path, numbers[number])
        assert (run / "finished.json").is_file(), f"job {number}: {log}"
        assert_same_result(run, undisturbed[number])
        assert int(cluster.job(numbers[number])["Restarts"]) >= 1, f"job {number} was not disturbed: {log}"
    for number in (0, 1, 2):
        assert CONTINUED.search(log_of(tmp_path, numbers[number])), "it began anew"

    told = cluster.train(tmp_path, "-m", "cluster=slurm", *arguments)
    assert told.returncode == 0 and told.stdout.count(": finished") == 4 and "SLURM job" not in told.stdout
    (table,) = tmp_path.rglob("sweep.csv")
    assert table.read_text().count(",finished,") == 4
