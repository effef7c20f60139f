"""All trainable parts of one adapter: prompts and gates by layer, and the visual projection where images are used."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmadapter.adapters.zero_init import PromptLayer, PromptSettings


class Adapter(nn.Module):
    """Prompts for some layers of a host, and a projection that turns image features into the host's width.

    `visual_projection` maps (rows, features) to (rows, width); None for an adapter without images.
    """

    def __init__(self, layers: dict[int, PromptLayer], visual_projection: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(index): layer for index, layer in sorted(layers.items())})
        self.visual_projection = visual_projection

    @classmethod
    def on_last_layers(
        cls,
        settings: PromptSettings,
        adapted: Iterable[int],
        visual_projection: nn.Module | None = None,
        generator: torch.Generator | None = None,
        device=None,
    ) -> Adapter:
        """An adapter with a prompt of its own on each layer of `adapted`, drawn from `generator` lowest layer first."""
        layers = {index: PromptLayer(settings, generator, device) for index in sorted(adapted)}
        return cls(layers, visual_projection)

    def by_index(self) -> dict[int, PromptLayer]:
        """The adapted layers by their number in the host."""
        return {int(index): layer for index, layer in self.layers.items()}  # type: ignore[misc]

    def gates(self) -> Tensor:
        """(adapted layers, heads): the factors on the prompt branches; no rows for joint attention."""
        rows = [layer.gate_values().detach() for layer in self.by_index().values() if not layer.joint]
        return torch.stack(rows) if rows else torch.zeros(0, 0)

    def visual(self, features: list[Tensor | None], device) -> Tensor | None:
        """(rows, width): each row's projected image, exactly zero for a row without one; None if no row has one.

        `features` holds one (features,) vector or None per row.
        """
        present = [row for row, feature in enumerate(features) if feature is not None]
        if not present or self.visual_projection is None:
            return None
        stacked = torch.stack([feature for feature in features if feature is not None]).to(device)
        projected = self.visual_projection(stacked)
        rows = projected.new_zeros(len(features), projected.shape[-1])
        return rows.index_copy(0, torch.tensor(present, device=projected.device), projected)
