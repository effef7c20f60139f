"""conf/adapter: the trainable parts and the groups that they train in (V1 paper, section 3; V2 paper, section 3)."""

from dataclasses import dataclass, field

from mmadapter.settings import choice, listing, named, number, plain

# What a trainable parameter can be.
ROLES = ("prompt", "gate", "visual_projection", "early_gate", "norm", "bias", "scale", "lora")
VISUAL_ROLES = ("visual_projection", "early_gate")  # they are nothing without pictures


@dataclass
class GroupConf:
    roles: list[str] = listing()  # of ROLES; every role that the adapter has is in one group, or frozen
    lr_scale: float = number(1.0, above=0)  # times the run's learning rate
    weight_decay: float | None = number(None, at_least=0)  # null = optimizer.weight_decay
    sources: list[str] | None = None  # keys of data.sources that move this group; null = all


@dataclass
class ProjectionConf:
    kind: str = choice("mlp", "query_transformer")  # mlp reads vision.tokens=class, query_transformer vision.tokens=all
    hidden: int = number(64, at_least=1)  # inner width; mlp: 4608 -> 64 -> 4096 fits V1's 0.6M; released V2: 768
    tokens: int = number(1, at_least=1)  # n visual tokens an image; V1: 1; V2: 20; released: 10, one for each prompt
    blocks: int = number(8, at_least=1)  # of the query transformer; released V2: 8, V1's caption model: 2
    heads: int = number(16, at_least=1)  # of each of its blocks; released: 16


@dataclass
class LoraConf:
    rank: int = number(0, at_least=0)  # 0 = no LoRA; released V2: 16
    alpha: int | None = number(None, at_least=1)  # factor alpha/rank; null = rank, a factor of 1 as released
    on: list[str] = listing("all")  # kinds of linear layers, as in bias


@dataclass
class AdapterConf:
    prompt_length: int = number(10, at_least=1)  # K, prompts a layer; V1: 10, V2: 20
    layers: int = number(30, at_least=0)  # L, the last L layers of the host have prompts; V1: 30 of 32, V2: 31
    gate: str = choice("tanh", "identity")  # paper: tanh; identity for some released checkpoints
    gate_per: str = choice("head", "layer")  # paper: one gate a head; layer = one scalar
    gate_factor: bool = False  # one more factor on a layer's gates, 1 at the start (released V2 with LoRA)
    attention: str = choice("zero_init", "joint")  # joint = the paper's baseline: one softmax, no gate
    prompt_std: float = number(1.0, at_least=0)  # standard deviation of the prompts at the start; official code: 1
    prompt_projection: str = choice("adapted", "base")  # prompts through W with bias, scale, LoRA (V2), or W alone
    early_layers: int = number(0, at_least=0)  # first layers that attend to visual tokens (V2: 1); 0 = V1's addition
    projection: ProjectionConf = field(default_factory=ProjectionConf)
    bias: list[str] = listing()  # kinds of linear layers with a bias: q k v o gate up down (the host's own), or all
    scale: list[str] = listing()  # kinds of linear layers with a scale, or all
    scale_on: str = choice("output", "input")  # s (W x + b), the V2 paper; or W (s x) + b, the released 65B
    norms: str = choice("none", "blocks", "all")  # norms that train: none, those of the blocks, the last one too (V2)
    lora: LoraConf = field(default_factory=LoraConf)
    frozen: list[str] = listing()  # roles that are there and do not train in this run (a later phase, an earlier one)
    start: str | None = plain(None)  # adapter or run folder whose tensors the training starts from; null = fresh
    groups: dict[str, GroupConf] = named()  # name -> roles that train together
