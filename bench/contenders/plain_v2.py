"""V2 as one would write it around a host: peft's prompts, every linear layer wrapped in a module with a bias and a
scale, the norms unfrozen; batches padded to the longest, labels in, loss out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.case import Case
from bench.contenders import peft_prompts


class Wrapped(nn.Module):
    """s * (W x + b)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features  # peft reads them
        made: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.bias = nn.Parameter(torch.zeros(linear.out_features, **made))
        self.scale = nn.Parameter(torch.ones(linear.out_features, **made))

    def forward(self, hidden: Tensor) -> Tensor:
        return (self.linear(hidden) + self.bias) * self.scale


def training(case: Case) -> Callable[[int], float]:
    model = peft_prompts.model_of(case)
    decoder = model.base_model.model.model
    for layer in decoder.layers:
        for name, linear in [found for found in layer.named_modules() if isinstance(found[1], nn.Linear)]:
            parent, _, own = name.rpartition(".")
            setattr(layer.get_submodule(parent), own, Wrapped(linear))
    for module in decoder.modules():
        if type(module).__name__.endswith("Norm"):
            module.requires_grad_(True)
    return peft_prompts.training(case, model)
