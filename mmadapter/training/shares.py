"""What each process keeps of the trained tensors under DeepSpeed's ZeRO stages: gradients, float32 values, moments.

Trained parameters themselves stay whole on every process. The one place that reads DeepSpeed's own book-keeping, so
that the engine can treat all stages alike: stage 0 keeps everything everywhere, stages 1 and 2 cut the flattened
parameters of one optimizer entry into as many equal parts as there are processes, stage 3 cuts each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Share:
    """This process's part of one parameter: `count` elements (maybe 0) from `begin` of the flattened parameter.

    They stand at `offset` of `master`, the float32 tensor that the optimizer moves (flattened).
    """

    parameter: nn.Parameter
    master: Tensor
    begin: int
    count: int
    offset: int
    find_gradient: Callable[[], Tensor]

    def gradient(self) -> Tensor:
        """(count,): its part of the gradient, between the last backward and the optimizer's step; may be written to."""
        return self.find_gradient() if self.count else self.master.new_zeros(0)

    def own(self, flat: Tensor) -> Tensor:
        """(count,): the part of a tensor that is laid out like `master`."""
        return flat.view(-1).narrow(0, self.offset, self.count)

    def cut(self, whole: Tensor) -> Tensor:
        """(count,): the part of a tensor of the parameter's shape."""
        return whole.reshape(-1).narrow(0, self.begin, self.count)


def find_shares(
    engine: Any, stage: int, entries: Mapping[str, int], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Share]:
    """This process's share of every parameter of a DeepSpeed engine; `entries`: its number in the optimizer's list."""
    if stage == 0:
        return {name: _everything(parameter) for name, parameter in parameters.items()}
    zero = engine.optimizer
    if stage == 3:
        return {name: _cut_parameter(zero, parameter) for name, parameter in parameters.items()}
    masters = zero.single_partition_of_fp32_groups
    return {name: _cut_entry(zero, masters[entries[name]], parameter) for name, parameter in parameters.items()}


def _everything(parameter: nn.Parameter) -> Share:
    def gradient() -> Tensor:
        assert parameter.grad is not None
        return parameter.grad.view(-1)

    return Share(parameter, parameter, 0, parameter.numel(), 0, gradient)


def _cut_entry(zero: Any, master: Tensor, parameter: Any) -> Share:
    """Stages 1 and 2; a parameter that lies in other processes' parts has no mapping here."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return Share(parameter, master, 0, 0, 0, lambda: master)
    begin, there = mapping.lp_fragment_address.start, mapping.get_hp_fragment_address()

    def gradient() -> Tensor:
        if zero.cpu_offload:
            return _gradient_in(master, there.start, there.numel)
        return mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)

    return Share(parameter, master, begin, there.numel, there.start, gradient)


def _cut_parameter(zero: Any, parameter: Any) -> Share:
    """Stage 3: equal parts of each parameter, the last ones filled up."""
    from deepspeed.utils import safe_get_local_grad

    number, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    master = zero.fp32_partitioned_groups_flat[number]
    begin = min(dist.get_rank() * size, parameter.ds_numel)
    count = min(size, parameter.ds_numel - begin)

    def gradient() -> Tensor:
        if zero.offload_optimizer:
            return _gradient_in(master, offset, count)
        return safe_get_local_grad(parameter).view(-1)[:count]

    return Share(parameter, master, begin, count, offset, gradient)


def _gradient_in(master: Tensor, offset: int, count: int) -> Tensor:
    """Under offload the gradients wait beside the optimizer's tensor."""
    assert master.grad is not None
    return master.grad.narrow(0, offset, count)


def whole_tensors(
    shares: Mapping[str, Share], part: Callable[[Share], Tensor], replicated: bool, device: torch.device
) -> dict[str, Tensor]:
    """The whole tensor of each parameter (on the CPU, on every process) from what each process has of it; collective.

    Bits are added as integers, to which only one process gives something else than 0: -0.0 stays -0.0.
    """
    sizes = [share.parameter.numel() for share in shares.values()]
    together = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
    for share, piece in zip(shares.values(), together.split(sizes), strict=True):
        share.cut(piece).copy_(part(share))
    if not replicated:
        dist.all_reduce(together.view(torch.int32))
    pieces = together.cpu().split(sizes)
    return {
        name: piece.reshape(share.parameter.shape).clone()
        for (name, share), piece in zip(shares.items(), pieces, strict=True)
    }


def write_parameter(share: Share, value: Tensor) -> None:
    """Puts a whole value into a parameter and into every copy that DeepSpeed keeps of it here."""
    write_value(share.parameter, value)
    share.own(share.master.data).copy_(share.cut(value))


def write_value(parameter: Tensor, value: Tensor) -> None:
    """Puts a whole value into a tensor that is whole here; under stage 3 also into this process's part of it.

    After each step DeepSpeed gathers all that it keeps whole from the parts anew.
    """
    parameter.data.copy_(value)
    part = getattr(parameter, "ds_tensor", None)
    if part is not None:
        begin = dist.get_rank() * part.numel()
        own = value.reshape(-1)[begin : begin + part.numel()]
        part.data.view(-1)[: own.numel()].copy_(own)
