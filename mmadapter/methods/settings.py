"""The settings of every method, one dataclass each. Loads no torch.

A method that is null or absent in `adapter` is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mmadapter.settings import choice, listing, number


class MethodConf:
    """What a method's settings say besides their values; a method's own class inherits from it."""

    ROLES: ClassVar[tuple[str, ...]] = ()  # what its trainable parameters can be
    VISUAL: ClassVar[bool] = False  # it is nothing without pictures
    READS_FEATURES: ClassVar[bool] = False  # it makes the visual tokens of what the image encoder gives
    TAKES_TOKENS: ClassVar[bool] = False  # visual tokens enter the host through it
    FUSES: ClassVar[bool] = False  # and through no other method: prompts leave them alone
    SMALL_BATCH_LR: ClassVar[float] = 2e-3  # actual rate with batches of some 4 samples (optimizer.lr and base_lr null)

    def roles(self) -> list[str]:
        """The roles that its parameters have under these values."""
        return list(self.ROLES)

    def function(self) -> dict[str, Any]:
        """What makes the same tensors another function; where it differs, tensors cannot be taken over."""
        return dict(vars(self))

    def problems_beside(self, others: Mapping[str, MethodConf], key: str) -> Iterator[str]:
        """What does not fit the adapter's other methods; `key` is where the adapter's settings stand."""
        yield from ()

    def feature_problems(self, key: str, shape: tuple[int, ...]) -> Iterator[str]:
        """What does not fit the shape of one picture's features, (features,) or (tokens, features)."""
        yield from ()


@dataclass
class ProjectionConf(MethodConf):
    """The visual projection (V1, section 3.3; V2, 3.2)."""

    ROLES: ClassVar[tuple[str, ...]] = ("visual_projection",)
    VISUAL: ClassVar[bool] = True
    READS_FEATURES: ClassVar[bool] = True
    SMALL_BATCH_LR: ClassVar[float] = 5e-3

    kind: str = choice("mlp", "query_transformer")  # mlp reads vision.tokens=class, query_transformer vision.tokens=all
    hidden: int = number(64, at_least=1)  # inner width; mlp: 4608 -> 64 -> 4096 fits V1's 0.6M; released V2: 768
    tokens: int = number(1, at_least=1)  # visual tokens an image; V1: 1; V2: 20; released: 10, one for each prompt
    blocks: int = number(
        8, at_least=1, at_most=1000
    )  # blocks of the query transformer; released V2: 8, V1's caption model: 2
    heads: int = number(16, at_least=1)  # attention heads of each of its blocks; released: 16

    def function(self) -> dict[str, Any]:
        return {"kind": self.kind} | ({"heads": self.heads} if self.kind == "query_transformer" else {})

    def feature_problems(self, key: str, shape: tuple[int, ...]) -> Iterator[str]:
        gives, reads = "all" if len(shape) == 2 else "class", "class" if self.kind == "mlp" else "all"
        if gives != reads:
            group = "clip_vit_l14_tokens" if reads == "all" else "clip_vit_l14"
            yield (
                f"{key}.kind={self.kind} reads vision.tokens={reads}, but vision.tokens is {gives}. "
                f"Set vision.tokens={reads} (as vision={group} does), or the other kind."
            )

    def problems_beside(self, others: Mapping[str, MethodConf], key: str) -> Iterator[str]:
        if not any(other.TAKES_TOKENS for other in others.values()):
            yield (
                f"{key}.projection makes visual tokens, and neither {key}.prompts nor {key}.early_fusion is there: "
                f"pictures have no way in. Set {key}.early_fusion.layers=1 (V2), {key}.prompts.layers=30 (V1), or "
                "vision=none adapter=v1"
            )

    def contradictions(self, key: str) -> Iterator[str]:
        if self.kind == "query_transformer" and self.hidden % self.heads:
            yield (
                f"{key}.heads={self.heads} does not divide {key}.hidden={self.hidden}: each head takes hidden / heads "
                "numbers. Released: hidden 768 (or 512), heads 16."
            )


@dataclass
class PromptsConf(MethodConf):
    """Adaptation prompts with zero-init attention (V1, section 3.2)."""

    ROLES: ClassVar[tuple[str, ...]] = ("prompt", "gate")
    TAKES_TOKENS: ClassVar[bool] = True
    SMALL_BATCH_LR: ClassVar[float] = 1e-2

    length: int = number(10, at_least=1)  # K, the prompts of a layer; V1: 10, V2: 20
    # L, the last L layers of the host have prompts; null = all but one in 16 (V1: 30 of 32), or with early fusion all
    # but its layers (V2: 31 of 32)
    layers: int | None = number(None, at_least=1)
    # factor on the branch: tanh(gate) (paper), or the gate itself (some released files)
    gate: str = choice("tanh", "identity")
    gate_per: str = choice("head", "layer")  # one gate for each head (paper), or one for a layer
    gate_factor: bool = False  # one more factor on a layer's gates, 1 at the start (released V2 with LoRA)
    # joint = the paper's baseline: one softmax for prompts and text, no gate
    attention: str = choice("zero_init", "joint")
    std: float = number(1.0, at_least=0)  # standard deviation of the prompts at the start; official code: 1
    # k and v projections that prompts pass: with the trained parts in them (V2), or the frozen W alone
    through: str = choice("adapted", "base")

    def roles(self) -> list[str]:
        return ["prompt"] if self.attention == "joint" else ["prompt", "gate"]

    def function(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("gate", "gate_per", "attention", "through")}

    def problems_beside(self, others: Mapping[str, MethodConf], key: str) -> Iterator[str]:
        if any(other.FUSES for other in others.values()):
            return
        for name, other in others.items():
            tokens = getattr(other, "tokens", 1) if other.READS_FEATURES else 1
            if tokens not in (1, self.length):
                yield (
                    f"{key}.{name}.tokens={tokens}: without {key}.early_fusion one visual token is added to all "
                    f"prompts of a layer, or one to each. Set {key}.{name}.tokens=1 or ={self.length}"
                )


@dataclass
class EarlyFusionConf(MethodConf):
    """Visual tokens in the first layers, through zero-init attention (V2, section 3.3)."""

    ROLES: ClassVar[tuple[str, ...]] = ("early_gate",)
    VISUAL: ClassVar[bool] = True
    TAKES_TOKENS: ClassVar[bool] = True
    FUSES: ClassVar[bool] = True
    SMALL_BATCH_LR: ClassVar[float] = 1e-2

    layers: int = number(1, at_least=1)  # so many first layers attend to visual tokens; V2: 1
    gate: str = choice("tanh", "identity")  # as adapter.prompts.gate
    gate_per: str = choice("head", "layer")  # as adapter.prompts.gate_per
    through: str = choice("adapted", "base")  # as adapter.prompts.through, for visual tokens

    def function(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("gate", "gate_per", "through")}

    def problems_beside(self, others: Mapping[str, MethodConf], key: str) -> Iterator[str]:
        if not any(other.READS_FEATURES for other in others.values()):
            yield (
                f"{key}.early_fusion has no visual tokens without {key}.projection. Add the projection, e.g. "
                f"{key}.projection.tokens=20, or set {key}.early_fusion=null"
            )


@dataclass
class LoraConf(MethodConf):
    """Low-rank matrices beside linear layers: W x + alpha / rank * up(down(x)) (Hu et al. 2021)."""

    ROLES: ClassVar[tuple[str, ...]] = ("lora",)

    rank: int = number(16, at_least=1)  # width of the matrices; released V2: 16
    # what they add is multiplied by alpha / rank; null = rank (as released)
    alpha: int | None = number(None, at_least=1)
    on: list[str] = listing("all")  # linear layers: q k v o gate up down (the host's own names), or all

    @property
    def factor(self) -> float:
        return (self.alpha or self.rank) / self.rank

    def function(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def contradictions(self, key: str) -> Iterator[str]:
        if not self.on:
            yield f"{key}.on is empty: name linear layers, or all; or leave LoRA out with {key}=null"


@dataclass
class BiasScaleConf(MethodConf):
    """A bias and a scale on linear layers (V2, section 3.1, equations 1 and 2)."""

    ROLES: ClassVar[tuple[str, ...]] = ("bias", "scale")

    bias: list[str] = listing("all")  # linear layers with a bias: q k v o gate up down (the host's own names), or all
    scale: list[str] = listing("all")  # linear layers with a scale, or all
    # output = s (W x + b), the V2 paper; input = W (s x) + b, the released 65B
    scale_on: str = choice("output", "input")

    def roles(self) -> list[str]:
        return [role for role in self.ROLES if getattr(self, role)]

    def function(self) -> dict[str, Any]:
        return {"scale_on": self.scale_on} if self.scale else {}

    def contradictions(self, key: str) -> Iterator[str]:
        if not self.bias and not self.scale:
            yield f"{key}.bias and {key}.scale are both empty: name linear layers, or leave both out with {key}=null"


@dataclass
class NormsConf(MethodConf):
    """The host's norms, unfrozen (V2, section 3.1)."""

    ROLES: ClassVar[tuple[str, ...]] = ("norm",)

    # all = also the one behind the last block (V2); blocks = without it (released 65B)
    which: str = choice("all", "blocks")

    def function(self) -> dict[str, Any]:
        return {}


@dataclass
class GroupConf:
    """Roles that train together."""

    roles: list[str] = listing()  # every role that the adapter has is in exactly one group, or in adapter.frozen
    lr_scale: float = number(1.0, above=0)  # the group's learning rate is the run's times this
    weight_decay: float | None = number(None, at_least=0)  # of this group; null = optimizer.weight_decay
    sources: list[str] | None = None  # keys of data.sources that move this group; null = all

    def contradictions(self, key: str) -> Iterator[str]:
        if self.sources is not None and not self.sources:
            yield f"{key}.sources is empty: the group would never learn. Name sources, or set it to null for all."
