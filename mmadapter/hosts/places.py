"""Where the linear layers and norms of a host are: what V2's bias, scale and norms, and LoRA, are put around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mmadapter.adapters.adapter import FINAL
from mmadapter.errors import InputError
from mmadapter.hosts.recipes import Host, decoder, decoder_layers, recipe_for

ALL = "all"


@dataclass(frozen=True)
class Place:
    """A module of the host, by the module that holds it."""

    owner: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        return getattr(self.owner, self.name)

    def put(self, module: nn.Module) -> None:
        setattr(self.owner, self.name, module)


PlacesByLayer = dict[int, dict[str, Place]]  # host layer -> kind -> place


def linear_kinds(host: Host, asked: Sequence[str], key: str) -> list[str]:
    """The kinds of linear layers that `asked` names (or "all"), in the host's order.

    Raises InputError that names the configuration `key` for a kind that the host's blocks do not have.
    """
    kinds = list(recipe_for(host.config.model_type).linears)
    unknown = [kind for kind in asked if kind not in (*kinds, ALL)]
    if unknown:
        raise InputError(
            f"{key} names {', '.join(unknown)}, but the linear layers of a {host.config.model_type} block are: "
            f"{', '.join(kinds)}. Name some of these, or all."
        )
    return [kind for kind in kinds if kind in asked or ALL in asked]


def linear_places(host: Host) -> PlacesByLayer:
    """Every linear layer of every decoder block, by kind."""
    paths = recipe_for(host.config.model_type).linears
    return {
        index: {kind: _place(layer, path) for kind, path in paths.items()}
        for index, layer in enumerate(decoder_layers(host))
    }


def norm_places(host: Host, final: bool) -> PlacesByLayer:
    """Every norm of every decoder block by its own name; with `final` the one behind the last block, as layer FINAL."""
    places = {index: _norms_below(layer) for index, layer in enumerate(decoder_layers(host))}
    if final:
        parent = decoder(host)
        places[FINAL] = {name: Place(parent, name) for name, child in parent.named_children() if _is_norm(name, child)}
    return places


def _norms_below(layer: nn.Module) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for path, module in layer.named_modules():
        name = path.rpartition(".")[2]
        if _is_norm(name, module):
            assert name not in found, f"two norms of one block are named {name}"
            found[name] = _place(layer, path)
    return found


def _is_norm(name: str, module: nn.Module) -> bool:
    """A norm that the family itself placed; one that was put around already counts once, by its outer name."""
    if name == "base":
        return False
    inner = getattr(module, "base", module)
    return type(inner).__name__.endswith("Norm")


def _place(layer: nn.Module, path: str) -> Place:
    parent, _, name = path.rpartition(".")
    return Place(layer.get_submodule(parent), name)
