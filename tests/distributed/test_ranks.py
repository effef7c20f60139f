"""What the processes of a run say to each other, and how they come together and part."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from mmadapter import meeting, processes
from mmadapter.errors import InputError
from mmadapter.launch.start import free_port
from mmadapter.processes import Processes, here, join, joined, leave
from tests.distributed.several import Several


def test_alone_every_question_is_answered_at_once():
    alone = Processes()
    assert alone.sum([1.5, 2]) == [1.5, 2]
    assert alone.broadcast("x") == "x" and alone.gather("x") == ["x"] and alone.decide(lambda: 3) == 3
    alone.wait()
    assert alone.is_first


def test_a_process_that_was_started_alone_stays_as_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with connected("cpu") as alone:
        assert (alone.count, alone.launcher) == (1, "python") and not dist.is_initialized()


def test_a_group_of_one_for_deepspeed_is_gone_afterwards_with_its_variables():
    before = dict(os.environ)
    for _ in range(2):
        with connected("cpu", group_of_one=True):
            assert dist.get_world_size() == 1 and os.environ["RANK"] == "0"
            assert join("cpu") is here()  # a second time: nothing
        assert not dist.is_initialized() and dict(os.environ) == before


def talk():
    for _ in range(2):  # a sweep: the same processes join again
        with connected("cpu"):
            me = here()
            assert me.sum([me.rank, 0.5]) == [3.0, 1.5]
            assert me.sum([(1e16, 1.0, -1e16)[me.rank]] * 5) == [0.0] * 5  # in their order, whatever the place
            assert me.broadcast(f"from {me.rank}") == "from 0"
            assert me.gather(me.rank) == [0, 1, 2]
            assert me.decide(lambda: os.getpid()) == me.gather(os.getpid())[0]
            me.wait()
        leave()  # a second time: nothing
        assert here().world_size == 1
    print("talked")


def test_three_processes_talk_and_part_and_meet_again(tmp_path):
    group = Several(3, talk, folder=tmp_path)
    assert group.end() == [0, 0, 0], group.said(0)
    assert [group.said(rank) for rank in range(3)] == ["talked\n"] * 3


def talk_as_tasks_of_srun(job):
    rank = os.environ["RANK"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    os.environ.update(step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
    with connected("cpu"):
        assert os.environ["RANK"] == rank and os.environ["MASTER_PORT"]  # for DeepSpeed
        print(here().launcher, here().sum([here().rank + 1]))
    assert "RANK" not in os.environ


def test_tasks_of_an_srun_step_meet_without_anything_being_said(tmp_path):
    group = Several(2, talk_as_tasks_of_srun, f"{os.getpid()}.{time.time()}", folder=tmp_path)
    assert group.end() == [0, 0], group.said(0)
    assert group.said(0) == group.said(1) == "srun [3.0]\n"


def trouble(what, which):
    with connected("cpu"):
        if which in (here().rank, "all"):
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"bug": ValueError("a bug"), "input": InputError("no such file"), "exit": SystemExit(0)}[what]
        here().barrier()  # for ever


@pytest.mark.parametrize(
    "what,which,statuses,speaks",
    [
        ("bug", 1, [1, 1, 1], "stopped, because process 1 ended: ValueError: a bug"),
        ("exit", 2, [1, 1, 0], "stopped, because process 2 ended: it left with status 0"),
        ("kill", 2, [1, 1, -9], "stopped, because process 2 ended: it is gone without a word"),
        ("input", 2, [2, 2, 1], "stopped, because process 2 ended: no such file"),
    ],
)
def test_a_process_in_trouble_ends_all_within_seconds_and_the_first_says_why(what, which, statuses, speaks, tmp_path):
    started = time.monotonic()
    group = Several(3, trouble, what, which, folder=tmp_path)
    ended = group.end()
    assert time.monotonic() - started < 30
    assert ended == statuses  # (a bare InputError leaves Python with 1; the entry makes it 2)
    assert group.said(0).startswith(speaks) and group.said(0).count("\n") == 1
    assert group.said(3 - which) == ""


def lose_the_first():
    with connected("cpu"):
        if here().is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("Connection closed by peer")  # as gloo says it, before the watch has heard


def test_a_killed_first_process_is_named_though_a_broken_connection_was_noticed_before(tmp_path):
    group = Several(2, lose_the_first, folder=tmp_path)
    assert group.end() == [-9, 1]
    assert group.said(1).startswith("stopped, because process 0 ended: it is gone without a word")


def test_what_goes_wrong_everywhere_is_shown_once(tmp_path):
    group = Several(3, trouble, "input", "all", folder=tmp_path)
    group.end()
    assert "InputError: no such file" in group.said(0) and (group.said(1), group.said(2)) == ("", "")


def come_late(seconds):
    if os.environ["RANK"] == "1":
        time.sleep(10)
    try:
        join("cpu", meet_seconds=seconds)
    except InputError as error:
        print(error)


def test_those_that_do_not_come_are_named(tmp_path):
    group = Several(2, come_late, 1.0, folder=tmp_path)
    group.processes[0].join(20)
    assert "Of 2 processes these did not come within 1 s: 1." in group.said(0) and "meet_seconds" in group.said(0)
    for process in group.processes:
        process.kill()


def die_in_the_meeting():
    def killed(address, count, seconds):
        time.sleep(1.5)  # the other one waits by then
        os.kill(os.getpid(), signal.SIGKILL)

    meeting.Hub = killed
    try:
        join("cpu", meet_seconds=30)
    except InputError as error:
        print(error)


def test_the_first_process_killed_while_all_meet_is_told_at_once(tmp_path):
    group, began = Several(2, die_in_the_meeting, folder=tmp_path), time.monotonic()
    assert group.end() == [-signal.SIGKILL, 0] and time.monotonic() - began < 25
    assert "Process 0 ended while the processes met." in group.said(1) and "Traceback" not in group.said(1)


def die_before_connecting(killed):
    def dies(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        owner, name = {"before": (meeting, "Watch"), "after": (dist, "init_process_group")}[killed]
        setattr(owner, name, dies)
    with joined("cpu", meet_seconds=2):
        here().barrier()


@pytest.mark.parametrize(
    "killed,said",
    [
        ("before", "Of 3 processes these did not come within 2 s: 1. "),
        ("after", "stopped, because process 1 ended: it is gone without a word"),
    ],
)
def test_one_that_dies_while_all_meet_ends_the_others_with_one_message(tmp_path, killed, said):
    group, began = Several(3, die_before_connecting, killed, folder=tmp_path), time.monotonic()
    first, second, third = group.end()
    assert second == -signal.SIGKILL and first == 1 and third == (2 if killed == "before" else 1)
    assert time.monotonic() - began < 30 and said in group.said(0) and group.said(2) == ""


def meet_behind_a_firewall():
    if os.environ["RANK"] == "1":
        watch = meeting.Watch
        meeting.Watch = lambda address, *rest: watch(address | {"port": free_port()}, *rest)
    with joined("cpu", meet_seconds=2):
        here().barrier()


def test_one_that_cannot_reach_the_first_says_where_and_does_not_call_it_dead(tmp_path):
    group = Several(2, meet_behind_a_firewall, folder=tmp_path)
    assert group.end() == [1, 1]  # InputErrors; the entry makes it 2
    said = group.said(1)
    assert "Process 1 of 2 could not reach process 0 at 127.0.0.1:" in said and "Process 0 lives" in said
    assert "did not come within 2 s: 1. " in group.said(0) and "whether the ports" in group.said(0)


def never_connect():
    if os.environ["RANK"] == "1":
        dist.init_process_group = lambda *_, **__: time.sleep(60)
    join("cpu", meet_seconds=2)


def test_connecting_ends_in_time_though_collectives_may_wait_for_a_day(tmp_path):
    group = Several(2, never_connect, folder=tmp_path)
    assert group.end(30) == [2, 2]
    assert group.said(0).startswith("error: The processes have met, but could not connect") and group.said(1) == ""


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    place = processes.Place(2, 3, 2, "127.0.0.1", 1, "torchrun")
    with pytest.raises(InputError, match="has 2 GPUs for at least 3 processes"):
        processes._use_gpu(place)


@pytest.mark.parametrize("launcher,gpus,index", [("srun", 1, 0), ("srun", 4, 1), ("torchrun", 4, 1)])
def test_deepspeed_is_told_the_gpu_that_the_process_uses(monkeypatch, launcher, gpus, index):
    """SLURM may show each task one GPU, which then is number 0 for the second task too; DeepSpeed reads LOCAL_RANK."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(processes, "find_place", lambda _: processes.Place(1, 2, 1, "127.0.0.1", 1, launcher))
    monkeypatch.setattr(processes, "meeting_place", lambda *_: dist.HashStore())
    monkeypatch.setattr(processes, "meet", lambda *_: None)
    told = {}
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **settings: told.update(settings))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    try:
        join("cuda")
        assert told["device_id"] == torch.device("cuda", index) and os.environ["LOCAL_RANK"] == str(index)
    finally:
        leave()
    assert "LOCAL_RANK" not in os.environ
