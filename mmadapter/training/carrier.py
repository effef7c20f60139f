"""The module that DeepSpeed is given: one micro-batch forward and backward, ending in one gradient a parameter."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from mmadapter.methods.groups import Group
from mmadapter.training.optimizer import learns_from
from mmadapter.training.random_state import own_stream

OUTSIDE = ("adapter", "vision")  # children of the model that are not shared out


class Carrier(nn.Module):
    """Holds the trained parameters and, where it shall be shared out, the frozen base of `model`.

    Its forward returns a loss whose graph is one node with a gradient for every trained parameter: of the micro-batch
    where the parameter's group learns from its source, else zero. So all processes hand DeepSpeed the same tensors in
    the same order, whatever their micro-batches hold, and what activation checkpointing runs again lies behind it.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], with_base: bool, device: torch.device) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameter for group in groups for _, parameter in group.parameters)
        self.groups, self.device = groups, device
        self.broken: set[str] = set()  # groups whose gradient was not finite; whoever reads it clears it
        self.whole = weakref.ref(model)  # no part of this module, which DeepSpeed never lets go of
        self.with_base = with_base
        if with_base:
            self.base = nn.ModuleDict({name: part for name, part in model.named_children() if name not in OUTSIDE})

    def forward(self, batch: Any, *stream: object) -> Tensor:
        """The sum of the micro-batch's token losses; what is drawn at random depends on `stream` alone.

        Fillers go through the model like others: at stage 3 all processes must ask for the same weights.
        """
        model = self.whole()
        assert model is not None
        if not torch.is_grad_enabled():
            return model(batch.to(self.device))
        # A recomputation that stops early would leave out DeepSpeed's hooks behind the modules.
        with own_stream(self.device, *stream), set_checkpoint_early_stop(not self.with_base):
            loss = model(batch.to(self.device))
        found = self._gradients(loss, batch)
        gradients = [found.get(id(p), torch.zeros_like(p)) for p in self.trained]
        return _WithGradients.apply(loss.detach(), gradients, *self.trained)  # type: ignore[no-any-return]

    def _gradients(self, loss: Tensor, batch: Any) -> dict[int, Tensor]:
        """id -> gradient of the parameters that learn from the micro-batch; notes groups where it is not finite."""
        learning = [group for group in self.groups if learns_from(group, batch.source)]
        parameters = [parameter for group in learning for _, parameter in group.parameters]
        if not parameters or not loss.requires_grad:
            return {}
        found = dict(zip(map(id, parameters), torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
        kept: dict[int, Tensor] = {}
        for group in learning if batch.supervised_tokens else ():
            own = {id(p): found[id(p)] for _, p in group.parameters if found[id(p)] is not None}
            if _finite([*own.values()]):
                kept |= own
            else:
                self.broken.add(group.name)
        return kept


def _finite(tensors: Sequence[Tensor]) -> bool:
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


class _WithGradients(torch.autograd.Function):
    """A loss that has the given gradients."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        return None, None, *(gradient * factors[0] for gradient in ctx.gradients)
