"""launch.*: how many processes a run has on this machine, and how long they wait for each other."""

from dataclasses import dataclass

from mmadapter.settings import number


@dataclass
class LaunchConf:
    """Several processes on this machine."""

    # processes that the command starts here; null = none: it runs alone, or as torchrun, srun, deepspeed started it
    processes: int | None = number(None, at_least=1, influence=False)
    meet_seconds: int = number(60, at_least=1, influence=False)  # for all ranks to meet, once one is there
    timeout_minutes: float = number(30.0, above=0, influence=False)  # the longest wait of one rank for another
