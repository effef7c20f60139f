"""One cluster and one set of tiny inputs for all tests of this folder."""

from __future__ import annotations

import sys

import pytest

from tests.sweeps.slurm.cluster import Cluster, reason_not_to_run
from tests.sweeps.slurm.tiny_sweep import settings, sweep_jobs
from tests.training.tiny_run import save_inputs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := reason_not_to_run():
        pytest.skip(reason)
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def no_jobs_left(cluster):
    """Nothing that a test has submitted disturbs the next one."""
    yield
    cluster.call("scancel", "--user=root")
    cluster.wait_until_gone(cluster.queued(), 60)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def undisturbed(cluster, inputs, tmp_path_factory):
    """Seed -> the run folder of a job that nothing happened to; the client waited for all of them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    told = cluster.train(folder, "-m", "cluster=slurm", "seed=0,1,2,3", *settings(inputs))
    assert told.returncode == 0, told.stdout + told.stderr
    jobs = sweep_jobs(folder)
    assert len({job["slurm_job"].partition("_")[0] for job in jobs}) == 1, "one job array"
    return {job["number"]: folder / job["run"] for job in jobs}


@pytest.fixture(scope="session")
def python():
    return sys.executable
