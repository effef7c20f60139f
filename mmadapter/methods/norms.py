"""Unfrozen norms: trained copies of the parameters of the host's norms (LLaMA-Adapter V2, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.distributed.deepspeed import gathered
from mmadapter.methods.adapter import BuildContext, Method
from mmadapter.methods.settings import NormsConf


def build(settings: NormsConf, context: BuildContext) -> Method:
    """A NormCopy on every norm of the blocks, and on the one behind them ("all"; the released 65B has "blocks")."""
    norms = context.host.norms(final=settings.which == "all")
    return Method({place: NormCopy(context.host.module(*place)) for place in norms})


class NormCopy(nn.Module):
    """Trained copies of a frozen norm's own parameters, in float32, under the names that they have there."""

    ROLE = "norm"

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        with gathered(norm.parameters()):
            for name, parameter in norm.named_parameters():
                self.register_parameter(name, nn.Parameter(parameter.detach().to(torch.float32, copy=True)))
        self.kept_per_token = max(parameter.numel() for parameter in self.parameters())  # what was normalised

    def forward(self, base: Any, hidden: Tensor) -> Tensor:
        """What the norm inside `base` makes of `hidden` (..., width) with the trained parameters in place of its own.

        Raises TypeError where another part stands between the norm and this one: it replaces weights.
        """
        if isinstance(base, partial) or not isinstance(base, nn.Module):
            raise TypeError("trained norms stand directly around the norm; no other part can be inside")
        trained: dict[str, Tensor] = {f"module.{name}": parameter for name, parameter in self.named_parameters()}
        if isinstance(base, nn.LayerNorm):  # its kernel wants one type for all
            trained = {name: parameter.to(hidden.dtype) for name, parameter in trained.items()}
        return torch.func.functional_call(_WithoutHooks(base), trained, (hidden,)).to(hidden.dtype)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trained parameters take the place of the host's."""
        return dict(tensors) | {name: parameter.detach() for name, parameter in self.named_parameters()}


class _WithoutHooks(nn.Module):
    """A module whose hooks do not run: DeepSpeed's (stage 3) would look for the module's own parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden: Tensor) -> Tensor:
        return self.module.forward(hidden)
