"""conf/adapter: the trainable parts and the groups that they train in (V1 paper, section 3.2)."""

from dataclasses import dataclass

from mmadapter.config.fields import choice, listing, named, number, plain

ROLES = ("prompt", "gate", "visual_projection")  # what a trainable parameter can be


@dataclass
class GroupConf:
    roles: list[str] = listing()  # of ROLES; every role that the adapter has is in exactly one group
    lr_scale: float = number(1.0, above=0)  # times the run's learning rate
    weight_decay: float | None = number(None, at_least=0)  # null = optimizer.weight_decay
    sources: list[str] | None = None  # keys of data.sources that move this group; null = all


@dataclass
class AdapterConf:
    method: str = choice("v1")  # V1: prompts and gates in the last layers, the picture added to every prompt
    prompt_length: int = number(10, at_least=1)  # K, prompts a layer; paper: 10
    layers: int = number(30, at_least=1)  # L, the last L layers of the host; paper: 30 of 32
    gate: str = choice("tanh", "identity")  # paper: tanh; identity for some released checkpoints
    gate_per: str = choice("head", "layer")  # paper: one gate a head; layer = one scalar
    attention: str = choice("zero_init", "joint")  # joint = the paper's baseline: one softmax, no gate
    prompt_std: float = number(1.0, at_least=0)  # standard deviation of the prompts at the start; official code: 1
    start: str | None = plain(None)  # adapter or run folder whose tensors the training starts from; null = fresh
    groups: dict[str, GroupConf] = named()  # name -> roles that train together
