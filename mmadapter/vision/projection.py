"""The visual projection: CLIP features to one vector of the host's width (LLaMA-Adapter, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MlpProjection(nn.Module):
    """Bottleneck MLP from concatenated multi-scale features to the host's width, in float32.

    4608 -> 64 -> 4096 has 561,216 parameters, which fits the paper's 0.6M.
    Deviates: the paper gives neither widths nor the non-linearity; here GELU, and each feature vector is first brought
    to zero mean and unit variance without parameters: the scales of CLIP's blocks differ by orders of magnitude.
    """

    ROLE = "visual_projection"

    def __init__(self, features: int, hidden: int, width: int, device=None) -> None:
        super().__init__()
        self.narrow = nn.Linear(features, hidden, device=device)
        self.widen = nn.Linear(hidden, width, device=device)

    def forward(self, features: Tensor) -> Tensor:
        """(rows, features) -> (rows, width)."""
        normed = nn.functional.layer_norm(features.float(), features.shape[-1:])
        return self.widen(nn.functional.gelu(self.narrow(normed)))


def seed_projection(projection: nn.Module, generator: torch.Generator) -> None:
    """Draw a projection's weights again from `generator` (uniform, bounded by 1 / sqrt(inputs), as torch's default)."""
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for tensor in (layer.weight, layer.bias):
                nn.init.uniform_(tensor, -bound, bound, generator=generator)
