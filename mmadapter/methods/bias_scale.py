"""A bias and a scale around frozen linear layers (LLaMA-Adapter V2, section 3.1, equations 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmadapter.hosts.calls import Place
from mmadapter.methods.adapter import BuildContext, Method
from mmadapter.methods.settings import BiasScaleConf

NEAR_0 = 1e-2  # a scale from which plain + bias is not found back by a division


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
        if self.scale is not None and self.scale_on == "output":
            scaled: Tensor = _ShiftedAndScaled.apply(plain, self.bias, self.scale)
            return scaled
        return plain if self.bias is None else (plain.float() + self.bias).to(plain.dtype)

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


class _ShiftedAndScaled(torch.autograd.Function):
    """scale * (plain + bias) in float32, given back in the type of `plain`.

    The scale's gradient needs plain + bias. In float32 that is the result / scale: the result is kept, which the
    attention and the feed-forward block keep anyway for their own gradients. Where a scale is near 0, and in other
    types, whose results are rounded, `plain` is kept.
    """

    @staticmethod
    def forward(ctx: Any, plain: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
        wide = plain.float()
        result = (wide * scale if bias is None else torch.addcmul(bias * scale, wide, scale)).to(plain.dtype)
        ctx.keeps_result = plain.dtype == torch.float32 and bool((scale.abs() > NEAR_0).all())
        ctx.save_for_backward(result if ctx.keeps_result else plain, bias, scale)
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        kept, bias, scale = ctx.saved_tensors
        wide = gradient.float()
        rows = wide.reshape(-1, wide.shape[-1])
        total = rows.sum(0)
        of_plain = (wide * scale).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_bias = total * scale if ctx.needs_input_grad[1] else None
        of_scale = None
        if ctx.needs_input_grad[2]:
            of_scale = (rows * kept.reshape(rows.shape)).sum(0)
            if ctx.keeps_result:
                of_scale = of_scale / scale
            elif bias is not None:
                of_scale = of_scale + total * bias
        return of_plain, of_bias, of_scale
