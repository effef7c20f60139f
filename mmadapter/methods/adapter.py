"""All trainable parts of one adapter: its methods by name, and their parts by the places of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.hosts.attention import route
from mmadapter.hosts.calls import AdapterCall, Place, VisualTokens
from mmadapter.hosts.families import ATTENTION, Host
from mmadapter.hosts.places import HostPlaces
from mmadapter.methods import METHODS, AdapterConf
from mmadapter.methods.settings import MethodConf


@dataclass(frozen=True)
class BuildContext:
    """What a method is built from, besides its settings."""

    host: HostPlaces
    generator: torch.Generator | None = None
    """of fresh numbers; methods draw from it in the order of the register. Unused on the meta device."""
    features: int | None = None
    """numbers per picture, or per token of it, that the image encoder gives; None without one"""
    device: str | None = None
    """"meta" for shapes only, None for real tensors"""
    fused_layers: int = 0
    """the host's first layers that visual tokens have for themselves (V2)"""


class Method(nn.ModuleDict):
    """A method's parts by their places, (number of the host's layer, name of the place), each layer's in their order.

    Tensors are named LAYER.PLACE.TENSOR, or LAYER.TENSOR at the attention. A part is called as part(base, inputs); see
    docs/architecture.md. Its class says the roles of its parameters (groups.py).
    """

    def __init__(self, parts: Mapping[Place, nn.Module]) -> None:
        super().__init__()
        for (layer, place), part in sorted(parts.items(), key=lambda item: item[0][0]):
            if place != ATTENTION:
                of_layer: Any = self[str(layer)] if str(layer) in self else nn.ModuleDict()
                of_layer[place] = part
                part = of_layer
            self[str(layer)] = part

    def placed(self) -> Iterator[tuple[int, str, nn.Module]]:
        """(layer, place, part) of every part."""
        for layer, part in self.items():
            if isinstance(part, nn.ModuleDict):
                yield from ((int(layer), place, inner) for place, inner in part.items())
            else:
                yield int(layer), ATTENTION, part


class Adapter(nn.ModuleDict):
    """Everything that trains, by the name of its method; the tensors of a method are named METHOD.TENSOR.

    `settings` are those of the methods; `parts` are the parts at each place of the host, innermost first.
    """

    def __init__(self, methods: Mapping[str, nn.Module], settings: Mapping[str, MethodConf], host: HostPlaces) -> None:
        super().__init__(methods)
        self.settings = dict(settings)
        self.parts: dict[Place, list[nn.Module]] = {}
        at_attention: dict[str, set[int]] = {}
        for name, method in self.items():
            for layer, place, part in method.placed() if isinstance(method, Method) else ():
                self.parts.setdefault((layer, host.family.own_name(place)), []).append(part)
                if place == ATTENTION:
                    at_attention.setdefault(name, set()).add(layer)
        self.fuses = any(one.FUSES for one in self.settings.values())
        for one, other in combinations(at_attention, 2) if self.fuses else ():
            if meeting := at_attention[one] & at_attention[other]:
                layers = {name: len(at_attention[name]) for name in (one, other)}
                raise InputError(
                    f"adapter.{other}.layers={layers[other]} and adapter.{one}.layers={layers[one]} meet: the host has "
                    f"{host.depth} layers, and visual tokens stay apart from prompts. Set "
                    f"adapter.{one}.layers={layers[one] - len(meeting)} or less."
                )

    @classmethod
    def build(
        cls, conf: AdapterConf, host: Host, seed: int = 0, *, features: int | None = None, device: Any = "cpu"
    ) -> Adapter:
        """The methods of `conf` for `host`, drawn from `seed`, and their places in the host made ready.

        The host acts as without a fresh adapter, if its methods say that they start so. `features` is what the image
        encoder gives; `device="meta"` builds shapes only. Raises InputError for what does not fit the host.
        """
        if wrong := conf.method_problems():
            raise InputError(" ".join(wrong))
        places = HostPlaces(host)
        on_meta = str(device) == "meta"
        generator = None if on_meta else torch.Generator().manual_seed(seed)
        fused = sum(getattr(one, "layers", 0) for one in conf.chosen.values() if one.FUSES)
        context = BuildContext(places, generator, features, "meta" if on_meta else None, fused)
        methods = {name: METHODS.load(name)(settings, context) for name, settings in conf.chosen.items()}
        adapter = cls(methods, conf.chosen, places)
        adapter.attach(host)
        return adapter if on_meta else adapter.to(device)

    def attach(self, host: Host) -> None:
        """Let the host's modules look for this adapter's parts; idempotent, and without effect on other calls."""
        route(host)
        HostPlaces(host).wrap(self.parts)

    def call(self, visual: VisualTokens | None = None, keep: bool = False) -> AdapterCall:
        """What makes this adapter act in a call: `with host.adapter_slot.during(adapter.call()): host(...)`."""
        return AdapterCall(self.parts, visual, self.fuses, keep)

    def without_forest(self, learning: bool = True) -> str | None:
        """Why a batch under this adapter cannot be a forest (hosts/forest.py); None where it can.

        A part inside of a layer sees each token by itself, unless it says `follows_forest = False`; a part at the
        attention sees them all, and must say that it knows forests. Dropout matters where the batch is learned from.
        """
        for (layer, place), parts in self.parts.items():
            for part in parts:
                if not getattr(part, "follows_forest", place != ATTENTION):
                    return f"{type(part).__name__} at the {place} of layer {layer + 1} does not know forests"
        if learning and any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules()):
            return "dropout draws other numbers for other batches"
        return None

    @property
    def projection(self) -> Any:
        """The method that makes visual tokens of what the image encoder gives; None: the adapter is text only."""
        return next((self[name] for name, settings in self.settings.items() if settings.READS_FEATURES), None)

    def visual_tokens(self, features: list[Tensor | None], device: Any, always: bool = False) -> VisualTokens | None:
        """Each row's projected image, exactly zero for a row without one; None if no row has one.

        `features` holds one row of what the image encoder gives, (features,) or (tokens, features), or None. With
        `always` the same modules run, forward and backward, where no row has an image: other ranks may have one.
        """
        projection = self.projection
        if projection is None:
            return None
        present = [row for row, feature in enumerate(features) if feature is not None]
        if not (present or always):
            return None
        given = [feature for feature in features if feature is not None]
        projected = projection(torch.stack(given).to(device)) if given else projection(projection.nothing())[:0]
        rows = torch.tensor(present, dtype=torch.int64, device=projected.device)
        tokens = projected.new_zeros(len(features), *projected.shape[1:]).index_copy(0, rows, projected)
        mask = torch.zeros(len(features), dtype=torch.bool, device=projected.device)
        return VisualTokens(tokens, mask.index_fill(0, rows, True))

    def gates(self) -> Tensor:
        """(layers, heads): the factors on the branches beside the attention, lowest layer first; maybe no rows."""
        layers = sorted(layer for layer, place in self.parts if place == ATTENTION)
        parts: list[Any] = [part for layer in layers for part in self.parts[layer, ATTENTION]]
        rows = [part.gate_values().detach() for part in parts if hasattr(part, "gate")]
        return torch.stack(rows) if rows else torch.zeros(0, 0)

    def adapted_layers(self) -> dict[str, list[int]]:
        """Name of a method -> the numbers of the host's layers that have a part of it, where there are any."""
        found = {
            name: sorted({layer for layer, _, _ in method.placed() if layer >= 0})
            for name, method in self.items()
            if isinstance(method, Method)
        }
        return {name: layers for name, layers in found.items() if layers}

    def lowest_layer(self, depth: int) -> int:
        """The lowest layer of the host with a part; `depth` where there is none."""
        return min((layer for layer, _ in self.parts if layer >= 0), default=depth)

    def kept_per_token(self) -> int:
        """Numbers a token that the parts of one layer keep for the backward, the most of all layers."""
        kept: Counter[int] = Counter()
        for (layer, _), parts in self.parts.items():
            kept[layer] += sum(getattr(part, "kept_per_token", 0) for part in parts)
        return max(kept.values(), default=0)
