"""All trainable parts of one adapter: prompts and gates, early gates, visual projection, bias, scale, norms, LoRA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.adapters.zero_init import EarlyGate, PromptLayer, PromptSettings

PROMPT_PROJECTIONS = ("adapted", "base")
FINAL = -1  # number of the norm behind the last layer
PartsByLayer = Mapping[int, Mapping[str, nn.Module]]  # host layer -> kind of module in it -> trained part


@dataclass(frozen=True)
class VisualTokens:
    """What the visual projection made of a batch's images."""

    tokens: Tensor
    """(rows, tokens, width); zero for a row without an image"""
    present: Tensor
    """(rows,) bool: the row has an image"""


class Adapter(nn.Module):
    """Everything that trains, by the number of the host's layer (from 0).

    `layers` hold the prompts; `early` the gates of the first layers into which visual tokens are fused (V2; without
    them the visual tokens are added to the prompts, V1). `visual_projection` maps the image encoder's features of
    some rows to (rows, tokens, width). `linears`, `norms` and `lora` hold what is trained around frozen modules, by
    layer and kind of module. `prompt_projection` says whether prompts and visual tokens pass the adapted projections
    (paper V2, 65B) or the frozen ones (released 7B).
    """

    def __init__(
        self,
        layers: Mapping[int, PromptLayer],
        visual_projection: nn.Module | None = None,
        *,
        early: Mapping[int, EarlyGate] | None = None,
        linears: PartsByLayer | None = None,
        norms: PartsByLayer | None = None,
        prompt_projection: str = "adapted",
    ) -> None:
        super().__init__()
        if both := set(layers) & set(early or {}):
            raise ValueError(
                f"layers {sorted(both)} have prompts and visual tokens; they must not meet (V2, early fusion)"
            )
        if prompt_projection not in PROMPT_PROJECTIONS:
            raise ValueError(f"prompt_projection is {prompt_projection!r}; allowed: {', '.join(PROMPT_PROJECTIONS)}")
        self.layers = _by_number(layers)
        self.visual_projection = visual_projection
        self.early = _by_number(early or {})
        self.linears = _by_layer_and_kind(linears or {})
        self.norms = _by_layer_and_kind(norms or {})
        self.lora = _by_layer_and_kind({})
        self.prompt_projection = prompt_projection

    def add_lora(self, parts: PartsByLayer) -> None:
        """Take over the LoRA matrices that were put beside the host's linear layers."""
        self.lora = _by_layer_and_kind(parts)

    @classmethod
    def on_last_layers(
        cls,
        settings: PromptSettings,
        adapted: Iterable[int],
        visual_projection: nn.Module | None = None,
        generator: torch.Generator | None = None,
        device=None,
        **parts,
    ) -> Adapter:
        """An adapter with a prompt of its own on each layer of `adapted`, drawn from `generator` lowest layer first."""
        layers = {index: PromptLayer(settings, generator, device) for index in sorted(adapted)}
        return cls(layers, visual_projection, **parts)

    def by_index(self) -> dict[int, PromptLayer]:
        """The layers with prompts by their number in the host."""
        return {int(index): layer for index, layer in self.layers.items()}  # type: ignore[misc]

    def branch(self, index: int) -> PromptLayer | EarlyGate | None:
        """What is added to the attention of layer `index`: its prompts, or the gates of its visual tokens."""
        for branches in (self.layers, self.early):
            if str(index) in branches:
                return branches[str(index)]  # type: ignore[return-value]
        return None

    def gates(self) -> Tensor:
        """(layers, heads): the factors on the branches, early layers first; no rows for joint attention."""
        branches = [*self.early.values(), *self.by_index().values()]
        rows = [branch.gate_values().detach() for branch in branches if hasattr(branch, "gate")]  # type: ignore[operator]
        return torch.stack(rows) if rows else torch.zeros(0, 0)

    def visual(self, features: list[Tensor | None], device, always: bool = False) -> VisualTokens | None:
        """Each row's projected image, exactly zero for a row without one; None if no row has one.

        `features` holds one row of what the image encoder gives, (features,) or (tokens, features), or None. With
        `always` the same modules run, forward and backward, where no row has an image: other processes may have one.
        """
        projection: Any = self.visual_projection
        present = [row for row, feature in enumerate(features) if feature is not None]
        if projection is None or not (present or always):
            return None
        given = [feature for feature in features if feature is not None]
        projected = projection(torch.stack(given).to(device)) if given else projection(projection.nothing())[:0]
        rows = torch.tensor(present, dtype=torch.int64, device=projected.device)
        tokens = projected.new_zeros(len(features), *projected.shape[1:]).index_copy(0, rows, projected)
        mask = torch.zeros(len(features), dtype=torch.bool, device=projected.device)
        return VisualTokens(tokens, mask.index_fill(0, rows, True))

    def part(self, family: str, index: int, kind: str) -> nn.Module | None:
        """The part of `linears`, `norms` or `lora` (the family) around the module `kind` of layer `index`."""
        layers: nn.ModuleDict = getattr(self, family)
        name = str(index)
        if name not in layers or kind not in layers[name]:  # type: ignore[operator]
            return None
        return layers[name][kind]  # type: ignore[index]


def _by_number(modules: Mapping[int, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({str(index): module for index, module in sorted(modules.items())})


def _by_layer_and_kind(parts: PartsByLayer) -> nn.ModuleDict:
    return _by_number({index: nn.ModuleDict(dict(kinds)) for index, kinds in parts.items()})
