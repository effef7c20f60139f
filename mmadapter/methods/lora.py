"""LoRA: low-rank matrices beside frozen linear layers (Hu et al. 2021, equation 3; the released V2-7B has rank 16)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmadapter.methods.adapter import BuildContext, Method
from mmadapter.methods.settings import LoraConf


def build(settings: LoraConf, context: BuildContext) -> Method:
    """A Lora on every linear layer that the settings name, drawn lowest layer first, in the family's order.

    Raises InputError for a name that the host lacks.
    """
    own = (settings.rank, settings.factor, context.generator, context.device)
    linears = context.host.linears(settings.on, "adapter.lora.on")
    return Method({place: Lora(one.in_features, one.out_features, *own) for place, one in linears.items()})


class Lora(nn.Module):
    """The two matrices of one linear layer, in float32: `down` (rank, inputs) and `up` (outputs, rank).

    y = W x + factor * up(down(x)). `down` is drawn uniformly, bounded by 1 / sqrt(inputs), as `peft` and the released
    code do; `up` is zero, so that the layer's output stays bit-identical at the start.
    """

    ROLE = "lora"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        factor: float,
        generator: torch.Generator | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.kept_per_token = inputs + rank  # for the gradients of `down` and `up`
        self.down = nn.Linear(inputs, rank, bias=False, device="meta")
        self.up = nn.Linear(rank, outputs, bias=False, device="meta")
        down = torch.empty(rank, inputs, dtype=torch.float32, device=device)
        if not down.is_meta:
            down.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        self.down.weight = nn.Parameter(down)
        self.up.weight = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float32, device=device))

    def forward(self, base: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """What `base` makes of `hidden` (..., inputs), and the low-rank product: (..., outputs), in `base`'s type."""
        plain = base(hidden)
        return (plain + self.up(self.down(hidden.float())) * self.factor).to(plain.dtype)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W' = W + factor * up down."""
        product = self.factor * (self.up.weight @ self.down.weight)
        return dict(tensors) | {"weight": tensors["weight"] + product}
