"""Which signals bring a SLURM job back into the queue; the real thing is in tests/sweeps/slurm."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from mmadapter.config import RunConf
from mmadapter.errors import InputError
from mmadapter.processes import here, joined
from mmadapter.training.preemption import RunStopped, end_attempt, interrupt, stop_on_signals, termination_interrupts
from mmadapter.training.requeue import refuse_anew, requeue, requeue_is_due
from mmadapter.training.run import run
from tests.several import Several

RUNNING = "JobId=7 JobName=a b JobState=RUNNING Requeue=1 BatchFlag=1 PreemptTime=None"
SCRIPT = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in
show) echo "{state}" ;;
requeue) {requeue} ;;
esac
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A `scontrol` that says what a test wants; SLURM itself runs in tests/sweeps/slurm only."""
    calls = tmp_path / "calls"
    calls.touch()

    def says(state: str = RUNNING, answer: str = "exit 0"):
        program = tmp_path / "scontrol"
        program.write_text(SCRIPT.format(calls=calls, state=state, requeue=answer))
        program.chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return says


@pytest.mark.parametrize(
    "number,change,is_due",
    [
        ("SIGUSR2", {}, True),
        ("SIGUSR1", {}, True),
        ("SIGINT", {}, False),
        ("SIGTERM", {}, False),  # scancel --signal=TERM
        ("SIGTERM", {"PreemptTime=None": "PreemptTime=2026-01-01T00:00:00"}, True),
        ("SIGTERM", {"RUNNING": "COMPLETING", "PreemptTime=None": "PreemptTime=2026-01-01T00:00:00"}, False),
        ("SIGUSR2", {"RUNNING": "PENDING"}, False),  # SLURM has requeued it already
        ("SIGUSR2", {"BatchFlag=1": "BatchFlag=0"}, False),  # salloc, srun
    ],
)
def test_a_job_asks_to_be_requeued_where_slurm_does_not_do_it_by_itself(slurm, number, change, is_due):
    state = RUNNING
    for before, after in change.items():
        state = state.replace(before, after)
    slurm(state)
    assert requeue_is_due(getattr(signal, number)) is is_due


def test_outside_of_slurm_nothing_is_asked(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not requeue_is_due(signal.SIGUSR2)
    assert calls.read_text() == ""


def test_a_job_of_an_array_is_asked_for_by_its_own_number(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert "back in the queue" in requeue()
    assert calls.read_text().splitlines()[-1] == "requeue 7_2"


def test_a_job_that_may_not_be_requeued_or_is_refused_says_so(slurm):
    slurm(RUNNING.replace("Requeue=1", "Requeue=0"))
    assert "Requeue=0" in requeue() and "submit it again" in requeue()
    slurm(answer="echo 'no permission' >&2; exit 1")
    assert "is not requeued: no permission" in requeue()


def test_a_launchers_way_is_taken_and_its_trouble_is_said_where_the_job_still_runs(slurm):
    def fails():
        raise RuntimeError("timed-out too many times")

    slurm()
    assert "timed-out too many times" in requeue(fails)
    slurm(RUNNING.replace("RUNNING", "PENDING"))  # SLURM was quicker
    assert "back in the queue" in requeue(fails)


def test_a_job_that_may_queue_again_does_not_begin_anew_each_time(slurm, monkeypatch):
    never = RunConf(resume="never")
    for allowed in ("Requeue=0 BatchFlag=1", "Requeue=1 BatchFlag=0"):
        slurm(RUNNING.replace("Requeue=1 BatchFlag=1", allowed))
        refuse_anew(never)
    slurm()
    refuse_anew(RunConf())
    with pytest.raises(InputError, match="resume=never in SLURM job 7, which may queue again"):
        run(never)
    monkeypatch.delenv("SLURM_JOB_ID")
    refuse_anew(never)


def test_a_stopped_run_requeues_its_job_and_keeps_its_exit_code(slurm):
    calls, said = slurm(), []
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.agreed()
        with pytest.raises(RunStopped) as ended:
            stop.finish(said.append)
    assert ended.value.code == 140 and said == ["SLURM job 7 is back in the queue."]
    assert "requeue 7" in calls.read_text()


def be_told_to_stop(gets, place, has_launcher):
    """As `run` does outside of the loop: process 0 waits for process 1, to which the signal comes."""

    def launcher(number, frame):
        if os.environ["RANK"] == "0":
            Path(os.environ["REQUEUED_AT"]).write_text(str(time.time()))
            print("the launcher requeues", flush=True)
            sys.exit(255)

    if has_launcher:
        signal.signal(signal.SIGUSR2, launcher)
    with joined("cpu"), termination_interrupts():
        first = here().broadcast(os.getpid())
        try:
            if not here().is_first:
                time.sleep(1)
                print(time.time(), flush=True)
                if gets == "both":
                    os.kill(first, signal.SIGUSR2)
                os.kill(os.getpid(), signal.SIGUSR2)
            if place == "a collective":
                here().wait()
            time.sleep(60)
        except KeyboardInterrupt as error:
            end_attempt(error.args[0], interrupt, print)


@pytest.mark.parametrize("has_launcher", [False, True], ids=["scontrol", "a launcher"])
@pytest.mark.parametrize("gets,place", [("both", "a collective"), ("one", "a collective"), ("one", "Python")])
def test_the_first_process_requeues_at_once_and_once_though_it_waits_for_another(
    slurm, tmp_path, monkeypatch, gets, place, has_launcher
):
    at = tmp_path / "at"
    calls = slurm(answer=f"date +%s.%N > {at}")
    monkeypatch.setenv("REQUEUED_AT", str(at))
    group, began = Several(2, be_told_to_stop, gets, place, has_launcher, folder=tmp_path / "said"), time.monotonic()
    statuses = group.end()
    assert time.monotonic() - began < 25, group.said(0) + group.said(1)
    by_launcher_in_main = has_launcher and place == "Python"
    assert statuses == ([255, 255] if by_launcher_in_main else [140, 140]), group.said(0) + group.said(1)
    assert float(at.read_text()) - float(group.said(1).split()[0]) < 5
    assert calls.read_text().splitlines().count("requeue 7") == (0 if has_launcher else 1)
    assert group.said(0).count("the launcher requeues") == (1 if has_launcher else 0)
