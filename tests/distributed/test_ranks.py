"""What ranks tell each other, and how they come together, fail together and part."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmadapter.distributed import ranks as ranks_module
from mmadapter.distributed.launchers import Launched
from mmadapter.distributed.ranks import Ranks, connected
from mmadapter.distributed.settings import LaunchConf
from mmadapter.errors import InputError
from tests.distributed.several import Several, free_port


def test_alone_every_question_is_answered_at_once():
    alone = Ranks()
    assert alone.sum([1.5, 2]) == [1.5, 2]
    assert alone.gather("x") == ["x"] and alone.decide(lambda: 3) == 3
    assert alone.gather_bytes(b"x") == [b"x"] and alone.decide_bytes(lambda: b"y") == b"y"
    alone.barrier()
    assert alone.is_first


def test_a_process_that_was_started_alone_stays_as_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with connected("cpu") as alone:
        assert (alone.world_size, alone.launcher) == (1, "python") and not dist.is_initialized()


def test_a_group_of_one_for_deepspeed_is_gone_afterwards():
    before = dict(os.environ)
    for _ in range(2):
        with connected("cpu", group_of_one=True) as alone:
            assert dist.get_world_size() == alone.world_size == 1
        assert not dist.is_initialized() and dict(os.environ) == before


def talk():
    for _ in range(2):  # a sweep: the same processes connect again
        with connected("cpu") as me:
            assert me.sum([me.rank, 0.5]) == [3.0, 1.5]
            assert me.sum([(1e16, 1.0, -1e16)[me.rank]] * 5) == [0.0] * 5  # in rank order, whatever the place
            assert me.decide(lambda: f"from {me.rank}") == "from 0"
            assert me.gather({"rank": me.rank}) == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
            assert me.decide(lambda: os.getpid()) == me.gather(os.getpid())[0]
            assert me.gather_bytes(b"x" * me.rank) == [b"", b"x", b"xx"]
            assert me.decide_bytes(lambda: b"12") == b"12" and me.decide_bytes(bytes) == b""
            me.barrier()
        assert (me.rank, me.world_size) == (0, 1)
    print("talked")


@pytest.mark.parametrize("launcher", ["launch.processes", "torchrun"])
def test_three_ranks_talk_and_part_and_meet_again(tmp_path, launcher):
    group = Several(3, talk, folder=tmp_path, launcher=launcher)
    assert group.end() == [0, 0, 0], group.said(0)
    assert [group.said(rank) for rank in range(3)] == ["talked\n"] * 3


def talk_as_tasks_of_srun(job):
    rank = os.environ["RANK"]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    os.environ.update(step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
    with connected("cpu") as me:
        print(me.launcher, me.sum([me.rank + 1]))
    assert "RANK" not in os.environ


def test_tasks_of_an_srun_step_meet_without_anything_being_said(tmp_path):
    job = f"{os.getpid()}.{time.time()}"
    group = Several(2, talk_as_tasks_of_srun, job, folder=tmp_path, launcher="torchrun")
    assert group.end() == [0, 0], group.said(0)
    assert group.said(0) == group.said(1) == "srun [3.0]\n"


def pickle_nothing():
    """What an attacker who reaches a port could send must not be run: a tensor of bytes is JSON, or an error."""
    import pickle

    def refused(*_, **__):
        raise AssertionError("pickled")

    pickle.loads = pickle.dumps = pickle.Unpickler = pickle.Pickler = refused
    with connected("cpu") as me:
        me.decide(lambda: [1, {"a": None}])
        me.gather("x")
        me.decide_bytes(lambda: b"x")
        with pytest.raises(TypeError):
            me.gather(Path("x"))  # no JSON: refused where it is sent, on every rank
    print("json")


def test_ranks_tell_each_other_numbers_json_and_bytes_and_unpickle_nothing(tmp_path):
    group = Several(2, pickle_nothing, folder=tmp_path)
    assert group.end() == [0, 0], group.said(0)
    sources = [file.read_text() for file in Path(ranks_module.__file__).parents[1].rglob("*.py")]
    assert not [s for s in sources if "broadcast_object_list" in s or "all_gather_object" in s or "object_list" in s]


# --- one rank in trouble


def trouble(what, which):
    with connected("cpu") as me:
        me.sum([1.0])  # all are connected
        if which in (me.rank, "all"):
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"bug": ValueError("a bug"), "input": InputError("no such file")}[what]
        me.sum([1.0])  # for ever


@pytest.mark.parametrize("launcher", ["launch.processes", "torchrun"])
@pytest.mark.parametrize(
    "what,statuses,speaks",
    [("bug", [1, 1, 1], "ValueError: a bug"), ("input", [2, 2, 1], "InputError: rank 2: no such file")],
)
def test_an_error_on_one_rank_ends_all_with_its_message_alone(what, statuses, speaks, launcher, tmp_path):
    """(A bare InputError leaves Python with 1; the entry makes it 2.)"""
    group, started = Several(3, trouble, what, 2, folder=tmp_path, launcher=launcher), time.monotonic()
    assert group.end() == statuses, group.said(0)
    assert time.monotonic() - started < 30
    assert speaks in group.said(2) and (group.said(0), group.said(1)) == ("", "")


@pytest.mark.parametrize("launcher", ["launch.processes", "torchrun"])
@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_rank_ends_all_and_one_of_the_others_says_where_it_missed_it(killed, launcher, tmp_path):
    group, started = Several(3, trouble, "kill", killed, folder=tmp_path, launcher=launcher), time.monotonic()
    assert group.end() == [-9 if rank == killed else 1 for rank in range(3)]
    assert time.monotonic() - started < 30
    said = [line for rank in range(3) for line in group.said(rank).splitlines() if line.startswith("stopped: ")]
    store_goes = killed == 0 and launcher == "torchrun"  # once it is gone, each rank speaks for itself
    assert len(said) in ((1, 2) if store_goes else (1,)), [group.said(rank) for rank in range(3)]
    assert all("has lost the connection to another rank in test_ranks.py, line " in line for line in said), said
    assert "Traceback" not in "".join(group.said(rank) for rank in range(3))


@pytest.mark.parametrize("launcher", ["launch.processes", "torchrun"])
def test_what_goes_wrong_everywhere_is_shown_once_by_rank_0(tmp_path, launcher):
    group = Several(3, trouble, "input", "all", folder=tmp_path, launcher=launcher)
    assert group.end() == [1, 2, 2]
    assert "InputError: no such file" in group.said(0) and (group.said(1), group.said(2)) == ("", "")


# --- deadlines


def keep_others_waiting(seconds):
    with connected("cpu", LaunchConf(timeout_minutes=1 / 60)) as me:
        if me.rank == 1:
            time.sleep(seconds)
        me.sum([1.0])


def test_at_the_deadline_a_rank_says_where_it_waits_and_for_whom(tmp_path):
    group, started = Several(3, keep_others_waiting, 60, folder=tmp_path), time.monotonic()
    assert group.end() == [1, -9, 1] and time.monotonic() - started < 30
    said = group.said(0)
    assert (
        "rank 0 of 3 has waited 0.0166667 minutes in test_ranks.py, line " in said and "(keep_others_waiting)" in said
    )
    assert "for rank 1. To fix: " in said and "launch.timeout_minutes" in said and "Traceback" not in said
    assert group.said(2) == ""


def fail_where_the_others_wait(place):
    with connected("cpu") as me:
        if me.rank == 1:
            raise InputError("no such file")
        me.barrier() if place == "a barrier" else me.decide(lambda: time.sleep(60))


@pytest.mark.parametrize("place,statuses", [("a barrier", [2, 1, 2]), ("rank 0's work", [-9, 1, 2])])
def test_an_error_also_ends_those_that_wait_outside_of_a_collective(place, statuses, tmp_path):
    group, began = Several(3, fail_where_the_others_wait, place, folder=tmp_path), time.monotonic()
    assert group.end() == statuses and time.monotonic() - began < 30
    assert (group.said(0), group.said(2)) == ("", "") and "rank 1: no such file" in group.said(1)


def lose_the_store():
    with connected("cpu") as me:
        me._store = Gone()
        assert me.decide(lambda: "saved") == "saved"
        me.barrier()
        assert me.sum([1.0]) == [2.0]


class Gone(dist.Store):
    """A store whose server, torchrun, is gone."""

    def set(self, *_):
        raise dist.DistNetworkError("gone")

    check = add = get = set


def test_ranks_whose_launcher_is_gone_with_its_store_can_still_save_and_end(tmp_path):
    group = Several(2, lose_the_store, folder=tmp_path)
    assert group.end() == [0, 0], group.said(0) + group.said(1)


def let_rank_0_work_for_long():
    with connected("cpu", LaunchConf(timeout_minutes=1 / 60)) as me:
        assert me.decide(lambda: time.sleep(3) or "scored") == "scored"
        if me.rank == 1:
            time.sleep(3)  # encodes more than the other
        me.barrier()
        me.sum([1.0])
        if me.is_first:
            time.sleep(3)  # writes the report
    print("done")


def test_what_one_rank_does_alone_has_no_deadline(tmp_path):
    group = Several(2, let_rank_0_work_for_long, folder=tmp_path)
    assert group.end() == [0, 0], group.said(0) + group.said(1)


# --- the meeting


def come_late(seconds):
    if os.environ["RANK"] == "1":
        time.sleep(10)
    try:
        with connected("cpu", LaunchConf(meet_seconds=seconds)):
            pass
    except InputError as error:
        print(error)


@pytest.mark.parametrize("launcher", ["launch.processes", "torchrun"])
def test_those_that_do_not_come_are_named(tmp_path, launcher):
    group = Several(2, come_late, 1, folder=tmp_path, launcher=launcher)
    group.processes[0].join(20)
    assert "Of 2 ranks these did not come within 1 s" in group.said(0) and "): 1. To fix" in group.said(0)
    assert "meet_seconds" in group.said(0)
    for process in group.processes:
        process.kill()


def die_in_the_meeting():
    def killed(*_):
        time.sleep(1.5)  # the other one waits by then
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "0":
        ranks_module._meet = killed
    with connected("cpu", LaunchConf(meet_seconds=30)):
        pass


@pytest.mark.parametrize("launcher,said", [("launch.processes", ""), ("torchrun", "Rank 0 ended while the ranks met.")])
def test_rank_0_killed_while_all_meet_ends_the_others_soon(tmp_path, launcher, said):
    """By a file the others do not see it; whoever started them does, and ends them."""
    group, began = Several(2, die_in_the_meeting, folder=tmp_path, launcher=launcher), time.monotonic()
    assert group.end() == [-signal.SIGKILL, 1 if said else -signal.SIGKILL] and time.monotonic() - began < 25
    assert said in group.said(1)


def die_before_connecting(killed):
    def dies(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == "1":
        owner, name = {"before": (ranks_module, "_meet"), "after": (dist, "init_process_group")}[killed]
        setattr(owner, name, dies)
    with connected("cpu", LaunchConf(meet_seconds=2)) as me:
        me.sum([1.0])


@pytest.mark.parametrize(
    "killed,said",
    [("before", "Of 3 ranks these did not come within 2 s"), ("after", "could not connect with each other within 2 s")],
)
def test_one_that_dies_while_all_meet_ends_the_others_with_one_message(tmp_path, killed, said):
    group, began = Several(3, die_before_connecting, killed, folder=tmp_path), time.monotonic()
    first, second, third = group.end()
    assert second == -signal.SIGKILL and first and third, group.said(0)
    assert time.monotonic() - began < 30 and said in group.said(0) and group.said(2) == ""


def never_connect():
    if os.environ["RANK"] == "1":
        dist.init_process_group = lambda *_, **__: time.sleep(60)
    with connected("cpu", LaunchConf(meet_seconds=2)):
        pass


def test_connecting_ends_in_time_though_collectives_may_wait_for_longer(tmp_path):
    group = Several(2, never_connect, folder=tmp_path)
    assert group.end(30) == [2, 2]
    assert group.said(0).startswith("error: All ranks have come, but could not connect") and group.said(1) == ""


def find_nobody():
    with connected("cpu", LaunchConf(meet_seconds=2)):
        pass


def test_a_rank_that_cannot_reach_rank_0_says_where_it_looked(tmp_path):
    group = Several(2, find_nobody, folder=tmp_path, launcher="torchrun")
    group.processes[0].kill()
    assert group.end()[1] == 1
    assert "did not find rank 0 within 2 s at 127.0.0.1:" in group.said(1) or "Rank 0 ended" in group.said(1)
    assert "Rank 1 of 2" in group.said(1) or "Rank 0 ended" in group.said(1)


def lose_rank_0_after_the_meeting():
    meet = ranks_module._meet

    def meet_and_die(ranks, *rest):
        meet(ranks, *rest)
        if ranks.is_first:
            os.kill(os.getpid(), signal.SIGKILL)

    ranks_module._meet = meet_and_die
    with connected("cpu"):
        pass


def test_a_rank_that_loses_rank_0_while_they_connect_says_so(tmp_path):
    group = Several(2, lose_rank_0_after_the_meeting, folder=tmp_path, launcher="torchrun")
    assert group.end() == [-9, 1]
    said = group.said(1)
    assert "has lost the connection to another rank in the first meeting. That one has ended" in said or (
        "Rank 0 ended while the ranks met" in said
    ), said
    assert "IndexError" not in said


# --- GPUs


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="has 2 GPUs for at least 3 processes"):
        ranks_module._use_gpu(Launched(2, 3, 2, "torchrun", "127.0.0.1", 1))


@pytest.mark.parametrize("launcher,gpus,index", [("srun", 1, 0), ("srun", 4, 1), ("torchrun", 4, 1)])
def test_a_rank_uses_the_gpu_of_its_local_rank_or_the_only_one_that_slurm_shows_it(monkeypatch, launcher, gpus, index):
    """SLURM may show each task one GPU, which then is number 0 for the second task too."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    told = {}
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **settings: told.update(settings))
    monkeypatch.setattr(ranks_module, "_open_store", lambda *_: dist.HashStore())
    monkeypatch.setattr(ranks_module, "_meet", lambda *_: None)
    place = Launched(1, 2, 1, launcher, "127.0.0.1", free_port())
    ranks_module._connect(Ranks(1, 2), place, LaunchConf(), "cuda")
    assert told["device_id"] == torch.device("cuda", index) and told["timeout"].total_seconds() == 1800


def test_the_deadline_is_a_setting_that_json_can_tell():
    assert json.loads(json.dumps(LaunchConf().timeout_minutes)) == 30
