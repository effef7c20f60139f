"""A bias and a scale around frozen linear layers (LLaMA-Adapter V2, section 3.1, equations 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmadapter.hosts.calls import Place
from mmadapter.methods.adapter import BuildContext, Method
from mmadapter.methods.settings import BiasScaleConf


def build(settings: BiasScaleConf, context: BuildContext) -> Method:
    """A BiasScale on every linear layer that the settings name. Raises InputError for a name that the host lacks."""
    biased = context.host.linears(settings.bias, "adapter.bias_scale.bias")
    scaled = context.host.linears(settings.scale, "adapter.bias_scale.scale")
    parts: dict[Place, nn.Module] = {}
    for place, linear in context.host.linears().items():
        if place in biased or place in scaled:
            sizes, has = (linear.in_features, linear.out_features), (place in biased, place in scaled)
            parts[place] = BiasScale(*sizes, *has, settings.scale_on, context.device)
    return Method(parts)


class BiasScale(nn.Module):
    """The bias b and the scale s of one frozen linear layer, in float32; b = 0 and s = 1 at the start.

    scale_on "output": y = s * (W x + b), the paper's equation 1; "input": y = W (s * x) + b, the released 65B code. A
    bias of the host's own belongs to its layer: s * (W x + b_host + b). `bias` is (outputs,); `scale` is (outputs,) or
    (inputs,); each is absent where it is not asked for. With b = 0 and s = 1 the layer's output stays bit-identical.
    """

    ROLES = {"bias": "bias", "scale": "scale"}

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        scale: bool = True,
        scale_on: str = "output",
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_on = scale_on
        scaled = outputs if scale_on == "output" else inputs
        self.kept_per_token = scaled if scale else 0  # what the scale multiplies
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32, device=device)) if bias else None
        self.scale = nn.Parameter(torch.ones(scaled, dtype=torch.float32, device=device)) if scale else None

    def forward(self, base: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """What `base` makes of `hidden` (..., inputs), shifted: (..., outputs) in the layer's own type.

        In float32: a scale of 1.002 would be 1 in bfloat16.
        """
        if self.scale is not None and self.scale_on == "input":
            hidden = (hidden.float() * self.scale).to(hidden.dtype)
        plain = base(hidden)
        shifted = plain.float()
        if self.bias is not None:
            shifted = shifted + self.bias
        if self.scale is not None and self.scale_on == "output":
            shifted = shifted * self.scale
        return shifted.to(plain.dtype)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W' = s W and b' = s (b_host + b), or W' = W s and b' = b_host + b with the scale on the input."""
        weight, bias = tensors["weight"], tensors["bias"]
        if self.bias is not None:
            bias = bias + self.bias
        if self.scale is not None and self.scale_on == "output":
            weight, bias = weight * self.scale[:, None], bias * self.scale
        elif self.scale is not None:
            weight = weight * self.scale
        return {"weight": weight, "bias": bias}
