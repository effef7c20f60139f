"""What a launcher (torchrun, deepspeed, srun, launch.processes) has put into the environment. Loads no torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mmadapter.errors import InputError

STARTER = "MMADAPTER_STARTER"  # the process that launch.processes=N was given to
RENDEZVOUS = "MMADAPTER_RENDEZVOUS"  # the file at which the ranks that it has started meet
OTHER_LAUNCHERS = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed"}  # a variable that each alone sets
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM numbers batch scripts and interactive shells from here on
PORTS = range(15_000, 32_000)  # below the ports that systems hand out by themselves


@dataclass(frozen=True)
class Launched:
    """Rank `rank` of `world_size`, the `local_rank`-th of its machine, and where all ranks meet."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = "python"
    address: str = ""  # of rank 0's machine
    port: int = 0
    agent_has_store: bool = False  # torchrun holds the store at this address itself; else rank 0 does
    attempt: int = 0  # how often torchrun has started all ranks again
    file: str = ""  # launch.processes: the ranks meet through this file, not at an address


def launched(environment: Mapping[str, str]) -> Launched | None:
    """What a launcher says of this process; None where none has started it.

    torchrun and `deepspeed --no_local_rank` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT,
    launch.processes a file in place of the address. srun sets SLURM_PROCID and others for the tasks of a step; a script
    under sbatch or a shell under salloc has SLURM_NTASKS, too, but is no such task. Raises InputError where the
    variables are incomplete.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _from_variables(environment)
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    is_of_a_step = "SLURM_PROCID" in environment and step.isdigit() and int(step) < FIRST_SPECIAL_STEP
    return _from_slurm(environment) if is_of_a_step and tasks.isdigit() and int(tasks) > 1 else None


def first_host(names: str) -> str:
    """The first of SLURM's list of hosts: `node[07-09,12],login` gives node07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", names)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group()) if first else ""


def _from_variables(environment: Mapping[str, str]) -> Launched:
    known = (launcher for name, launcher in OTHER_LAUNCHERS.items() if name in environment)
    launcher = "launch.processes" if STARTER in environment else next(known, "RANK and WORLD_SIZE in the environment")
    names = (
        ["RANK", "WORLD_SIZE"] if RENDEZVOUS in environment else ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    )
    if missing := [name for name in names if not environment.get(name)]:
        if environment.get("WORLD_SIZE") == "1" and environment.get("RANK", "0") == "0":
            return Launched(launcher=launcher)
        given = ", ".join(f"{name}={environment[name]}" for name in names if environment.get(name))
        raise InputError(
            f"The environment has {given}, but not {', '.join(missing)}; a launcher sets all of {', '.join(names)}. "
            "To fix: start with torchrun, srun, or mmadapter train launch.processes=N, or unset them."
        )
    numbers = (environment.get(name) or "0" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    rank, world_size, local_rank, port = (int(number) for number in numbers)
    if RENDEZVOUS not in environment and world_size > 1 and not 0 < port < 65_536:
        raise InputError(
            f"The environment has MASTER_PORT={port}, at which no rank can listen; ports are 1 to 65535. To fix: leave "
            "--master-port=0 out; torchrun --standalone finds a free port."
        )
    return Launched(
        rank,
        world_size,
        local_rank,
        launcher,
        environment.get("MASTER_ADDR", ""),
        port,
        environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
        environment.get(RENDEZVOUS, ""),
    )


def _from_slurm(environment: Mapping[str, str]) -> Launched:
    """srun names no meeting place: all ranks derive it from the step's first host and from its number."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    digest = hashlib.sha256(f"{job}.{step}".encode()).digest()
    port = PORTS[int.from_bytes(digest[:4], "big") % len(PORTS)]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or ""
    one_machine = environment.get("SLURM_STEP_NUM_NODES") == "1"
    address = environment.get("MASTER_ADDR") or ("127.0.0.1" if one_machine else first_host(nodes))
    if not address:
        raise InputError(
            "srun has set SLURM_PROCID, but no SLURM_STEP_NODELIST. To fix: set MASTER_ADDR to the first host."
        )
    return Launched(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        int(environment.get("SLURM_LOCALID", "0")),
        "srun",
        address,
        int(environment.get("MASTER_PORT") or port),
    )


def own_job() -> str | None:
    """The number of this process's SLURM job; in an array "12_3", for 12 alone may mean all of them."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
