"""Who one is, from the environments that launchers make."""

import pytest

from mmadapter.distributed.launchers import PORTS, RENDEZVOUS, STARTER, first_host, launched
from mmadapter.errors import InputError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "2345",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_JOB_NODELIST": "n[1-2]"}
STEP = JOB | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_torchrun_tells_rank_place_and_that_it_holds_the_port():
    place = launched(TORCHRUN)
    assert (place.rank, place.world_size, place.local_rank, place.address, place.port) == (3, 4, 1, "node1", 2345)
    assert place.launcher == "torchrun" and place.agent_has_store and place.attempt == 2


def test_the_deepspeed_launcher_leaves_the_port_to_the_first_process():
    variables = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    place = launched(variables | {"CROSS_RANK": "0"})
    assert place.launcher == "deepspeed" and not place.agent_has_store


def test_launch_processes_gives_a_file_in_place_of_an_address():
    variables = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    place = launched(variables | {STARTER: "12", RENDEZVOUS: "/tmp/x/store", "MASTER_PORT": "0"})
    assert (place.launcher, place.file, place.rank, place.world_size) == ("launch.processes", "/tmp/x/store", 3, 4)


def test_a_task_of_srun_finds_the_first_host_and_a_port_of_its_step():
    place = launched(STEP)
    assert (place.rank, place.world_size, place.local_rank, place.address) == (2, 4, 0, "n1")
    assert place.launcher == "srun" and place.port in PORTS
    assert launched(STEP | {"SLURM_PROCID": "0"}).port == place.port
    assert launched(STEP | {"SLURM_STEP_ID": "1"}).port != place.port
    assert launched(STEP | {"SLURM_STEP_NUM_NODES": "1"}).address == "127.0.0.1"
    assert launched(STEP | {"MASTER_ADDR": "head", "MASTER_PORT": "99"}).address == "head"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        JOB,  # python train.py typed inside salloc
        JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_TASK_PID": "5"},  # inside an sbatch script
        STEP | {"SLURM_STEP_ID": "4294967291"},  # the batch script's own step
        STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # an interactive step: salloc's shell
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash
    ],
)
def test_a_process_that_no_srun_has_started_with_others_is_alone(environment):
    assert launched(environment) is None


def test_one_process_of_a_launcher_needs_no_address():
    assert launched({"RANK": "0", "WORLD_SIZE": "1"}).world_size == 1


@pytest.mark.parametrize(
    "environment,message",
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1, WORLD_SIZE=2, but not MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "but not RANK, MASTER_ADDR"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT=0, at which no rank can listen(.|\n)*--standalone"),
    ],
)
def test_half_an_environment_is_refused(environment, message):
    with pytest.raises(InputError, match=message):
        launched(environment)


@pytest.mark.parametrize(
    "names,first",
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("node[07-09,12],login", "node07"),
        ("gpu-[3,5]", "gpu-3"),
        ("rack[1-2]n[08-11]-ib,x", "rack1n08-ib"),
        ("", ""),
    ],
)
def test_the_first_of_slurms_hosts(names, first):
    assert first_host(names) == first
