"""Which of several processes this one is, from what a launcher has put into the environment."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mmadapter.errors import InputError

OUR_LAUNCHER = "MMADAPTER_LAUNCHER"  # set by launch.processes=N for the processes that it starts
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun: the meeting place is in torchrun's own process
RESTART_COUNT = "TORCHELASTIC_RESTART_COUNT"
NAMES_OF_LAUNCHERS = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed"}  # what each alone sets
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM numbers batch scripts and interactive shells from here on
PORTS = range(15_000, 32_000)  # below those that systems give away by themselves


@dataclass(frozen=True)
class Place:
    """Process `rank` of `count`, the `local_rank`-th of its machine; all meet at `address`:`port`."""

    rank: int
    count: int
    local_rank: int
    address: str
    port: int
    launcher: str
    port_is_taken: bool = False  # by the launcher, which holds the meeting place itself
    attempt: int = 0  # how often the launcher has started all anew


def find_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place; None for one that was started alone.

    torchrun, `deepspeed --no_local_rank` and launch.processes set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT. srun sets SLURM_PROCID and others for the tasks of a step; a script under sbatch or a shell under
    salloc has SLURM_NTASKS, too, but is no such task. Raises InputError where the variables are incomplete.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _from_launcher(environment)
    return _from_step(environment) if is_task_of_many(environment) else None


def is_task_of_many(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several that one srun has started."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_PROCID" not in environment or not step.isdigit() or int(step) >= FIRST_SPECIAL_STEP:
        return False
    return tasks.isdigit() and int(tasks) > 1


def first_host(names: str) -> str:
    """The first of SLURM's list of hosts: `node[07-09,12],login` gives node07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", names)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group()) if first else ""


def _from_launcher(environment: Mapping[str, str]) -> Place:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = environment.get("WORLD_SIZE") == "1" and environment.get("RANK", "0") == "0"
    if missing := [name for name in names if not environment.get(name)]:
        if alone:
            return Place(0, 1, 0, "127.0.0.1", 0, _name_of(environment))
        given = ", ".join(f"{name}={environment[name]}" for name in names if environment.get(name))
        raise InputError(
            f"The environment says {given}, but not {', '.join(missing)}: a launcher sets all of "
            f"{', '.join(names)}. Start with torchrun, srun, or python train.py launch.processes=N, or unset them."
        )
    numbers = {}
    for name, default in (("RANK", None), ("WORLD_SIZE", None), ("MASTER_PORT", None), ("LOCAL_RANK", "0")):
        text = environment.get(name) or default or ""
        if not text.isdigit():
            raise InputError(
                f"The environment says {name}={text}, which is no number. Start with torchrun, or unset it."
            )
        numbers[name] = int(text)
    if numbers["RANK"] >= numbers["WORLD_SIZE"]:
        raise InputError(
            f"The environment says RANK={numbers['RANK']} of WORLD_SIZE={numbers['WORLD_SIZE']}; ranks count from 0."
        )
    if not alone and not 0 < numbers["MASTER_PORT"] < 65_536:
        raise InputError(
            f"The environment says MASTER_PORT={numbers['MASTER_PORT']}, at which nobody can meet; ports are 1 to "
            "65535. Leave --master-port=0 away: torchrun --standalone finds a free one."
        )
    return Place(
        numbers["RANK"],
        numbers["WORLD_SIZE"],
        numbers["LOCAL_RANK"],
        environment["MASTER_ADDR"],
        numbers["MASTER_PORT"],
        _name_of(environment),
        environment.get(AGENT_STORE) == "True",
        int(environment.get(RESTART_COUNT, "0")),
    )


def _name_of(environment: Mapping[str, str]) -> str:
    if OUR_LAUNCHER in environment:
        return environment[OUR_LAUNCHER]
    found = (launcher for name, launcher in NAMES_OF_LAUNCHERS.items() if name in environment)
    return next(found, "RANK and WORLD_SIZE in the environment")


def _from_step(environment: Mapping[str, str]) -> Place:
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    digest = hashlib.sha256(f"{job}.{step}".encode()).digest()
    port = PORTS[int.from_bytes(digest[:4], "big") % len(PORTS)]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or ""
    one_machine = environment.get("SLURM_STEP_NUM_NODES") == "1"
    address = "127.0.0.1" if one_machine else first_host(nodes)
    if not address:
        raise InputError("srun has set SLURM_PROCID, but no SLURM_STEP_NODELIST. Set MASTER_ADDR to the first host.")
    return Place(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        int(environment.get("SLURM_LOCALID", "0")),
        environment.get("MASTER_ADDR") or address,
        int(environment.get("MASTER_PORT") or port),
        "srun",
    )
