"""conf/engine: what carries the steps out."""

from dataclasses import dataclass

from mmadapter.settings import choice, number, plain

ENGINES = ("single", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


@dataclass
class EngineConf:
    name: str = choice(*ENGINES, influence=False)  # single = one process, plain PyTorch; zeroN = DeepSpeed, stage N
    device: str = choice("auto", "cpu", "cuda", influence=False)  # auto = the GPU where there is one
    gathered_parameters: int = number(10**9, at_least=0, influence=False)  # zero3: frozen ones whole at a time, at most
    deterministic: bool = plain(False, influence=False)  # the same bits each time on a GPU, too; slower there
    cpu_adam: bool = plain(False, influence=False)  # with offload: DeepSpeed's own Adam (needs a compiler), faster


@dataclass
class LaunchConf:
    processes: int | None = number(None, at_least=1, influence=False)  # started by train.py here; null = as launched
    meet_seconds: int = number(60, at_least=1, influence=False)  # for all processes of a run to come, once one is there
