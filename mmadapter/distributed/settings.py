"""launch.*: how many processes a run has on this machine, and how long they wait for each other."""

from dataclasses import dataclass

from mmadapter.settings import number


@dataclass
class LaunchConf:
    processes: int | None = number(None, at_least=1, influence=False)  # started by train.py here; null = as launched
    meet_seconds: int = number(60, at_least=1, influence=False)  # for all ranks to come and connect, once one is there
    timeout_minutes: float = number(30.0, above=0, influence=False)  # for each exchange between ranks
