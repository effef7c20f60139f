"""Fresh trained parts for the modules of a host: bias and scale, norms (V2), LoRA (through `peft`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmadapter.adapters.linear import LinearShift, NormShift
from mmadapter.errors import InputError
from mmadapter.hosts.adapted import AdaptedModule
from mmadapter.hosts.places import ALL, linear_kinds, linear_places, norm_places
from mmadapter.hosts.recipes import Host
from mmadapter.hosts.sharded import whole

NORMS = ("none", "blocks", "all")
LORA_NAME = "mmadapter"
Parts = dict[int, dict[str, nn.Module]]


def linear_parts(
    host: Host, bias: Sequence[str] = (), scale: Sequence[str] = (), scale_on: str = "output", device=None
) -> Parts:
    """A LinearShift for every linear layer whose kind is in `bias` or `scale` (kinds of the host's blocks, or "all").

    Raises InputError for an unknown kind.
    """
    biased = linear_kinds(host, bias, "adapter.bias")
    scaled = linear_kinds(host, scale, "adapter.scale")
    parts: Parts = {}
    for index, places in linear_places(host).items():
        for kind in (kind for kind in places if kind in biased or kind in scaled):
            linear: Any = places[kind].module
            shift = LinearShift(
                linear.in_features, linear.out_features, kind in biased, kind in scaled, scale_on, device
            )
            parts.setdefault(index, {})[kind] = shift
    return parts


def norm_parts(host: Host, norms: str = "all") -> Parts:
    """Trained copies of the norms of the blocks, and of the one behind them ("all"; the released 65B has "blocks")."""
    if norms == "none":
        return {}
    places = norm_places(host, final=norms == "all")
    return {
        index: {kind: _copied(_frozen(place.module)) for kind, place in kinds.items()}
        for index, kinds in places.items()
    }


class LoraPair(nn.Module):
    """The two trained matrices that `peft` has put beside one linear layer; `down` (rank, in), `up` (out, rank).

    The layer adds `factor` * up(down(x)).
    """

    ROLE = "lora"

    def __init__(self, down: nn.Linear, up: nn.Linear, factor: float) -> None:
        super().__init__()
        self.down, self.up, self.factor = down, up, factor


def lora_parts(
    host: Host,
    rank: int,
    alpha: int | None = None,
    kinds: Sequence[str] = (ALL,),
    generator: torch.Generator | None = None,
) -> Parts:
    """LoRA of rank `rank` around the linear layers `kinds`, injected by `peft`: W x + alpha / rank * up(down(x)).

    `alpha` None is `rank`, a factor of 1 as released. `down` is drawn uniformly, bounded by 1 / sqrt(inputs), as
    `peft` and the released code do, but from `generator`; `up` is zero.
    In float32. Raises InputError for an unknown kind.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = linear_kinds(host, kinds, "adapter.lora.on")
    places = linear_places(host)
    if any(isinstance(place.module, AdaptedModule) for of_layer in places.values() for place in of_layer.values()):
        raise InputError("This host carries an adapter already; LoRA is put into a freshly loaded host. Load it again.")
    linears = {id(places[index][kind].module) for index in places for kind in chosen}
    names = [name for name, module in host.named_modules() if id(module) in linears]
    on_meta = next(host.parameters()).is_meta
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, lora_dropout=0.0, target_modules=names, bias="none")
    inject_adapter_in_model(config, host, adapter_name=LORA_NAME, low_cpu_mem_usage=on_meta)
    return {
        index: {kind: _pair(of_layer[kind].module, generator) for kind in chosen}
        for index, of_layer in linear_places(host).items()
    }


def _pair(layer: Any, generator: torch.Generator | None) -> LoraPair:
    down, up = layer.lora_A[LORA_NAME].float(), layer.lora_B[LORA_NAME].float()
    if not down.weight.is_meta:
        bound = down.in_features**-0.5
        drawn = torch.empty(down.weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            down.weight.copy_(drawn)
    for linear in (down, up):
        linear.requires_grad_(True)
    return LoraPair(down, up, float(layer.scaling[LORA_NAME]))


def _copied(norm: nn.Module) -> NormShift:
    with whole(norm.parameters()):
        return NormShift(norm)


def _frozen(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, AdaptedModule) else module
