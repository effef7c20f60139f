"""Bias and scale around a frozen linear layer, and unfrozen norms (LLaMA-Adapter V2, section 3.1, eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SCALES = ("output", "input")


class LinearShift(nn.Module):
    """The bias b and the scale s of one frozen linear layer, in float32; b = 0 and s = 1 at the start.

    scale_on "output": y = s * (W x + b), the paper's equation 1; "input": y = W (s * x) + b, the released 65B code. A
    bias of the host's own belongs to its layer: s * (W x + b_host + b). `bias` is (outputs,); `scale` is (outputs,) or
    (inputs,); each is absent where it is not asked for. With b = 0 and s = 1 the layer's output stays bit-identical.
    """

    ROLES = {"bias": "bias", "scale": "scale"}

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, scale: bool = True, scale_on: str = "output", device=None
    ) -> None:
        super().__init__()
        if scale_on not in SCALES:
            raise ValueError(f"scale_on is {scale_on!r}; allowed: {', '.join(SCALES)}")
        self.scale_on = scale_on
        scaled = outputs if scale_on == "output" else inputs
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32, device=device)) if bias else None
        self.scale = nn.Parameter(torch.ones(scaled, dtype=torch.float32, device=device)) if scale else None

    def forward(self, linear: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """What the frozen `linear` makes of `hidden` (..., inputs), shifted: (..., outputs) in the layer's own type.

        In float32: a scale of 1.002 would be 1 in bfloat16.
        """
        if self.scale is not None and self.scale_on == "input":
            hidden = (hidden.float() * self.scale).to(hidden.dtype)
        plain = linear(hidden)
        shifted = plain.float()
        if self.bias is not None:
            shifted = shifted + self.bias
        if self.scale is not None and self.scale_on == "output":
            shifted = shifted * self.scale
        return shifted.to(plain.dtype)


class NormShift(nn.Module):
    """Trained copies of a frozen norm's own parameters, in float32, under the names that they have there."""

    ROLE = "norm"

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, parameter in norm.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().to(torch.float32, copy=True)))

    def forward(self, norm: nn.Module, hidden: Tensor) -> Tensor:
        """What `norm` makes of `hidden` (..., width) with the trained parameters in place of its own."""
        trained: dict[str, Tensor] = {f"module.{name}": parameter for name, parameter in self.named_parameters()}
        if isinstance(norm, nn.LayerNorm):  # its kernel wants one type for all
            trained = {name: parameter.to(hidden.dtype) for name, parameter in trained.items()}
        return torch.func.functional_call(_WithoutHooks(norm), trained, (hidden,)).to(hidden.dtype)


class _WithoutHooks(nn.Module):
    """A module whose hooks do not run: DeepSpeed's (stage 3) would look for the module's own parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor) -> Tensor:
        return self.module.forward(hidden)
