"""The named places of one host: its shapes, the frozen module at a place, and the wrapper that lets parts act there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from mmadapter.errors import InputError
from mmadapter.hosts.calls import FINAL, AdaptedModule, Place
from mmadapter.hosts.families import (
    ATTENTION,
    Family,
    Host,
    decoder,
    decoder_layers,
    family_of,
)

ALL = "all"  # every linear layer


class HostPlaces:
    """What a method is built from: a host's shapes and its places by name."""

    def __init__(self, host: Host) -> None:
        self.host = host
        config = host.config
        self.model_type: str = config.model_type
        self.family: Family = family_of(config.model_type)
        self.width: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_dim: int = getattr(config, "head_dim", None) or self.width // self.heads
        self.depth: int = len(decoder_layers(host))

    def linears(self, asked: Sequence[str] = (ALL,), key: str = "") -> dict[Place, nn.Linear]:
        """The frozen linear layers of every block that `asked` names, lowest layer first, in the family's order.

        Raises InputError, beginning with the configuration `key`, for a name that is no linear layer of the family.
        """
        names = list(self.family.linears)
        if unknown := [name for name in asked if name not in (*names, ALL)]:
            raise InputError(
                f"{key} names {', '.join(unknown)}, but the linear layers of a {self.model_type} block are: "
                f"{', '.join(names)}. Name some of these, or all."
            )
        chosen = [name for name in names if name in asked or ALL in asked]
        return {(layer, name): self.module(layer, name) for layer in range(self.depth) for name in chosen}

    def last_layers(self, count: int, key: str) -> range:
        """The numbers of the last `count` layers. Raises InputError where the host has fewer."""
        if count > self.depth:
            raise InputError(f"{key}={count}, but the host has {self.depth} layers. Set {key}={self.depth} or less.")
        return range(self.depth - count, self.depth)

    def first_layers(self, count: int, key: str) -> range:
        """The numbers of the first `count` layers. Raises InputError where the host has fewer."""
        self.last_layers(count, key)
        return range(count)

    def norms(self, final: bool = False) -> list[Place]:
        """Every block's norms by their own names; with `final` the one behind the last block, whose layer is FINAL."""
        found = [(index, name) for index, layer in enumerate(decoder_layers(self.host)) for name in _norm_paths(layer)]
        return found + ([(FINAL, name) for name in self._final_norms()] if final else [])

    def module(self, layer: int, place: str) -> Any:
        """The frozen module at a place. Raises InputError, which lists the family's places, where there is none."""
        owner, name = self._find(layer, place)
        found = getattr(owner, name)
        return found.base if isinstance(found, AdaptedModule) else found

    def put(self, layer: int, place: str, module: nn.Module) -> None:
        """Set the module at a place."""
        owner, name = self._find(layer, place)
        setattr(owner, name, module)

    def wrap(self, places: Iterable[Place]) -> None:
        """Put an AdaptedModule around the module at each of `places`; idempotent. The attention needs none."""
        for layer, place in places:
            if place == ATTENTION:
                continue
            owner, name = self._find(layer, place)
            if not isinstance(found := getattr(owner, name), AdaptedModule):
                own_place = (layer, self.family.own_name(place))
                setattr(owner, name, AdaptedModule(found, self.host.adapter_slot, own_place))

    def _find(self, layer: int, place: str) -> tuple[nn.Module, str]:
        """The module that holds a place's module, and the name under which it does."""
        if layer == FINAL:
            known, block = self._final_norms(), decoder(self.host)
        else:
            block = decoder_layers(self.host)[layer]
            known = self.family.places | _norm_paths(block)
        if place not in known:
            raise InputError(
                f"A {self.model_type} host has no place {place!r}{' behind its blocks' if layer == FINAL else ''}. "
                f"Its places are: {', '.join([*([] if layer == FINAL else [ATTENTION]), *known])}."
            )
        parent, _, name = known[place].rpartition(".")
        owner = block.get_submodule(parent)
        return (owner.base if isinstance(owner, AdaptedModule) else owner), name

    def _final_norms(self) -> dict[str, str]:
        return {name: name for name, child in decoder(self.host).named_children() if _is_norm(name, child)}


def _norm_paths(layer: nn.Module) -> dict[str, str]:
    """Name of a norm -> its path in the block."""
    found: dict[str, str] = {}
    for path, module in layer.named_modules():
        name = path.rpartition(".")[2]
        if _is_norm(name, module):
            assert name not in found, f"two norms of one block are named {name}"
            found[name] = path
    return found


def _is_norm(name: str, module: nn.Module) -> bool:
    """A norm that the family itself placed; one that was wrapped counts once, by its outer name."""
    if name == "base":
        return False
    inner = module.base if isinstance(module, AdaptedModule) else module
    return type(inner).__name__.endswith("Norm")
