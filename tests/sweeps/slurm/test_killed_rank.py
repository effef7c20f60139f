"""kill -9 of one rank that srun has started: srun ends the other, and the job fails."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.distributed.test_ends_together import RANK
from tests.distributed.test_start import wait_until_gone
from tests.sweeps.slurm.cluster import CHECKOUT, wait_until

pytestmark = pytest.mark.slurm
SCRIPT = f"""#!/bin/bash
export PYTHONPATH={CHECKOUT}
srun --kill-on-bad-exit=1 {{python}} rank.py 'a collective'
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_rank_and_the_job_end_within_30_seconds(cluster, tmp_path, python, killed):
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "job.sh").write_text(SCRIPT.format(python=python))
    options = ["--parsable", "--output=log.txt", "--nodes=2", "--ntasks-per-node=1"]
    job = cluster.call("sbatch", *options, "job.sh", cwd=tmp_path).strip()

    def ranks() -> list[list[str]]:
        lines = (tmp_path / "log.txt").read_text().splitlines() if (tmp_path / "log.txt").exists() else []
        found = [line.split() for line in lines if line[:2] in ("0 ", "1 ")]
        return sorted(found) if len(found) == 2 else []

    numbers = [int(number) for _, number in wait_until(ranks, 120, "both ranks to meet")]
    began = time.monotonic()
    os.kill(numbers[killed], signal.SIGKILL)
    cluster.wait_until_gone([job], 60)
    assert time.monotonic() - began < 30, (tmp_path / "log.txt").read_text()
    wait_until_gone(numbers)
    assert cluster.job(job)["JobState"] == "FAILED"
