"""Which signals bring a SLURM job back into the queue; the real thing is in tests/sweeps/slurm."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mmadapter.config import RunConf
from mmadapter.distributed.ranks import Ranks, connected
from mmadapter.errors import InputError
from mmadapter.training.preemption import (
    RunStopped,
    end_interrupted,
    interrupts,
    refuse_new_folders,
    requeue,
    stop_on_signals,
)
from mmadapter.training.run import run
from tests.distributed.several import Several

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
    calls = slurm(state)
    said = requeue(getattr(signal, number))
    assert said == ("SLURM job 7 is back in the queue." if is_due else "")
    assert ("requeue 7" in calls.read_text()) is is_due


def test_outside_of_slurm_nothing_is_asked(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue(signal.SIGUSR2) == ""
    assert calls.read_text() == ""


def test_a_job_of_an_array_is_asked_for_by_its_own_number(slurm, monkeypatch):
    calls = slurm()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert "back in the queue" in requeue(signal.SIGUSR2)
    assert calls.read_text().splitlines()[-1] == "requeue 7_2"


def test_a_job_that_may_not_be_requeued_or_is_refused_says_so(slurm):
    slurm(RUNNING.replace("Requeue=1", "Requeue=0"))
    assert "Requeue=0" in requeue(signal.SIGUSR2) and "submit it again" in requeue(signal.SIGUSR2)
    slurm(answer="echo 'no permission' >&2; exit 1")
    assert "is not requeued: no permission" in requeue(signal.SIGUSR2)


def test_a_job_that_may_queue_again_does_not_begin_anew_each_time(slurm, monkeypatch):
    for allowed in ("Requeue=0 BatchFlag=1", "Requeue=1 BatchFlag=0"):
        slurm(RUNNING.replace("Requeue=1 BatchFlag=1", allowed))
        refuse_new_folders("never")
    slurm()
    refuse_new_folders("auto")
    with pytest.raises(InputError, match="resume=never in SLURM job 7, which may queue again"):
        run(RunConf(resume="never"))
    monkeypatch.delenv("SLURM_JOB_ID")
    refuse_new_folders("never")


def test_a_stopped_run_requeues_its_job_and_keeps_its_exit_code(slurm):
    calls, said = slurm(), []
    with stop_on_signals(Ranks()) as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.agreed()
        with pytest.raises(RunStopped) as ended:
            stop.finish(said.append)
    assert ended.value.code == 140 and said == ["SLURM job 7 is back in the queue."]
    assert "requeue 7" in calls.read_text()


def be_told_to_stop(gets, place):
    """As `run` does outside of the loop: rank 0 waits for rank 1, to which the signal comes."""
    with connected("cpu") as ranks, interrupts():
        first = ranks.decide(os.getpid)
        try:
            if not ranks.is_first:
                time.sleep(1)
                print(time.time(), flush=True)
                if gets == "both":
                    os.kill(first, signal.SIGUSR2)
                os.kill(os.getpid(), signal.SIGUSR2)
            if place == "a collective":
                ranks.sum([1.0])
            time.sleep(60)
        except KeyboardInterrupt as error:
            end_interrupted(ranks, error, "Run the same command again", print)


@pytest.mark.parametrize("gets,place", [("both", "a collective"), ("both", "Python"), ("one", "a collective")])
def test_a_job_is_requeued_at_once_and_once_though_rank_0_waits_for_another(slurm, tmp_path, gets, place):
    at = tmp_path / "at"
    calls = slurm(answer=f"date +%s.%N > {at}; sleep 1")
    group, began = Several(2, be_told_to_stop, gets, place, folder=tmp_path / "said"), time.monotonic()
    statuses = group.end()
    assert time.monotonic() - began < 25, group.said(0) + group.said(1)
    assert statuses == [140, 140], group.said(0) + group.said(1)  # none before the requeue: SLURM may end the job then
    assert float(at.read_text()) - float(group.said(1).split()[0]) < 5
    assert calls.read_text().splitlines().count("requeue 7") == 1
    said = group.said(0) + group.said(1)
    assert said.count("interrupted by SIGUSR2. Run the same command again") == 1 and "Traceback" not in said
    assert said.count("SLURM job 7 is back in the queue.") == 1


def stop_in_the_loop():
    with connected("cpu") as ranks, interrupts(), stop_on_signals(ranks) as stop:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        while not stop.agreed():
            time.sleep(0.1)
        stop.finish()


def test_in_the_loop_rank_0_requeues_and_no_rank_ends_before(slurm, tmp_path):
    calls = slurm(answer=f"sleep 1; date +%s.%N > {tmp_path / 'at'}")
    group = Several(2, stop_in_the_loop, folder=tmp_path / "said")
    group.processes[1].join()
    assert (tmp_path / "at").exists()
    assert group.end() == [140, 140], group.said(0) + group.said(1)
    assert calls.read_text().splitlines().count("requeue 7") == 1
    assert "back in the queue" in group.said(0)
