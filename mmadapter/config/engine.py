"""conf/engine: what carries the steps out."""

from dataclasses import dataclass

from mmadapter.config.fields import choice


@dataclass
class EngineConf:
    name: str = choice("single", influence=False)  # one process, one device, plain PyTorch
    device: str = choice("auto", "cpu", "cuda", influence=False)  # auto = the GPU where there is one
