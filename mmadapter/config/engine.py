"""`launch`: the processes of a run on this machine."""

from dataclasses import dataclass

from mmadapter.settings import number


@dataclass
class LaunchConf:
    processes: int | None = number(None, at_least=1, influence=False)  # started by train.py here; null = as launched
    meet_seconds: int = number(60, at_least=1, influence=False)  # for all processes of a run to come, once one is there
