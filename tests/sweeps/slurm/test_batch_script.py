"""The batch script of docs/cluster.md, without submitit: the run requeues itself and goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.sweeps.slurm.cluster import CHECKOUT, Cluster
from tests.sweeps.slurm.tiny_sweep import CONTINUED, assert_same_result, hold_at, settings

pytestmark = pytest.mark.slurm


def documented_script() -> str:
    """The script as docs/cluster.md prints it."""
    text = (CHECKOUT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    return script


def submit_script(cluster: Cluster, folder: Path, text: str, *options: str) -> str:
    script = folder / "job.sh"
    script.write_text(text)
    told = cluster.call("sbatch", "--parsable", "--output=log.txt", *options, "job.sh", cwd=folder)
    return told.strip()


def script_for(inputs: Path, seed: int, python: str) -> str:
    command = " ".join(f"'{word}'" for word in settings(inputs, f"seed={seed}", "run=runs/only"))
    text, replaced = re.subn(r"mmadapter train .*", f"{python} {CHECKOUT / 'train.py'} {command}", documented_script())
    assert replaced == 1
    return text


def only_run(folder: Path) -> Path:
    return folder / "runs" / "only"


def finished(cluster: Cluster, job: str, folder: Path, reference: Path) -> None:
    cluster.wait_until_gone([job])
    log = (folder / "log.txt").read_text()
    assert (only_run(folder) / "finished.json").is_file(), log
    assert cluster.job(job)["JobState"] == "COMPLETED" and int(cluster.job(job)["Restarts"]) >= 1, log
    assert CONTINUED.search(log) and "Traceback" not in log, log
    assert_same_result(only_run(folder), reference)


def test_a_time_limit_and_a_preemption_that_cancels(cluster, inputs, undisturbed, tmp_path, python):
    """The preempted job has asked for no signal: it gets SIGTERM and a grace time, and must requeue itself.

    Two minutes: of one, only half a minute is left before the signal, and a busy machine loads as long as that.
    """
    limited, preempted = tmp_path / "limited", tmp_path / "preempted"
    for folder in (limited, preempted):
        folder.mkdir()
    text = script_for(inputs, 0, python)
    first = submit_script(cluster, limited, text, "--nodelist=n1", "--time=2", "--signal=USR2@28")
    text = re.sub(r"#SBATCH --signal=.*\n", "", script_for(inputs, 1, python))
    second = submit_script(cluster, preempted, text, "--nodelist=n2", "--partition=spot")
    hold_at({only_run(limited): 60, only_run(preempted): 70})
    cluster.take_node("n2")
    finished(cluster, second, preempted, undisturbed[1])
    finished(cluster, first, limited, undisturbed[0])
