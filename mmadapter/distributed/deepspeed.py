"""DeepSpeed on our process group, without its traps, and its private book-keeping: who holds which part of a tensor.

The one place that uses private names of DeepSpeed, or works around what it does by itself (compiling, MPI, log lines).
Its version is bounded above; tests/distributed/test_deepspeed.py fails where one of the names has vanished.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmadapter.errors import InputError

# Seen: 0.16.0 (offloaded) and 0.17.6 lose all but one of a step's micro-batches at stage 2.
OLDEST, FIRST_UNKNOWN = (0, 19), (0, 20)
TORCHS_LINEAR = nn.functional.linear


# --- the library and its engines

_engines: list[Any] = []
_group: Any = None  # torch's, at the last call


def load_deepspeed(device: torch.device | str) -> Any:
    """The library, connected with the other ranks and told to use the device.

    Raises InputError where it is missing, too old, or newer than what this file was tested with.
    """
    global _group
    on_gpu = torch.device(device).type == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it takes a GPU that it finds
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    fix = "To fix: pip install 'deepspeed>=0.19,<0.20', or engine=single"
    try:
        import deepspeed  # takes seconds, and only some engines need it
    except ImportError as error:
        raise InputError(f"engine=zero... needs DeepSpeed, which cannot be imported ({error}). {fix}") from error
    if not OLDEST <= tuple(int(part) for part in deepspeed.__version__.split(".")[:2]) < FIRST_UNKNOWN:
        raise InputError(f"engine=zero... needs deepspeed 0.19; this is {deepspeed.__version__}. {fix}")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # The number of the GPU, which it reads: 0 where SLURM shows each task one of its own.
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device()) if on_gpu else os.environ.get("LOCAL_RANK", "0")
    # Shared-memory collectives on CPU: there is no setting, and they are compiled at the start, or fail without g++.
    deepspeed.ops.__compatible_ops__ = {}  # whole: a look at the table tries a compiler on everything, loudly
    if _group is not dist.group.WORLD:
        deepspeed.comm.comm.cdb = None  # it keeps the group of a run that has ended
    _group = dist.group.WORLD
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False)
    deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD  # else it makes one of its own, without our deadline
    return deepspeed


def start_engine(device: torch.device | str, **arguments: Any) -> Any:
    """What `deepspeed.initialize` makes of the arguments, until `end_engines`."""
    engine, *_ = load_deepspeed(device).initialize(**arguments)
    _engines.append(engine)
    return engine


def end_engines() -> None:
    """Ends all engines of this process and empties the sharded parameters of their models, which are of no use then.

    DeepSpeed itself would keep them as long as the process lives, beside those of the next model: in hooks, in a list
    of modules, and in what one of its methods remembers. Its stage 3 also leaves its own linear layer in place of
    torch's, which rounds otherwise: the next run of this process gets torch's again.
    """
    while _engines:
        engine = _engines.pop()
        engine.destroy()
        for holder in (engine.basic_optimizer, engine.optimizer):  # of moments and gradients; hooks keep them
            if holder is not None:
                vars(holder).clear()
        for parameter in engine.module.parameters():
            if hasattr(parameter, "ds_tensor"):
                parameter.ds_tensor.data = parameter.data = parameter.data.new_empty(0)
    if "deepspeed.runtime.zero.parameter_offload" in sys.modules:
        sys.modules["deepspeed.runtime.zero.parameter_offload"].FWD_MODULE_STACK.clear()
    nn.functional.linear = TORCHS_LINEAR
    gc.collect()


# --- frozen parameters at stage 3: every rank holds its part


def is_sharded(module: nn.Module) -> bool:
    """Whether each rank holds only its part of this module's parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def whole_size(parameter: Tensor) -> int:
    """How many numbers the whole parameter has, wherever its parts are."""
    return getattr(parameter, "ds_numel", parameter.numel())


def held_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of these parameters that this rank holds: its parts of sharded ones, and what is whole here."""
    return sum(
        tensor.numel() * tensor.element_size()
        for parameter in parameters
        for tensor in (parameter, getattr(parameter, "ds_tensor", None))
        if tensor is not None
    )


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """While inside, these parameters can be read whole on every rank; for reading only. Collective."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


def keep_whole(engine: Any, adapter: Iterable[nn.Parameter]) -> None:
    """Stage 3: the `adapter`'s parameters, and frozen vectors (norms, biases), stay whole on every rank.

    Prompts and gates are read outside of the module that holds them, and all of the adapter is saved, what is frozen in
    this run (LoRA is inside the host) too; the vectors are a ten-thousandth of a host.
    """
    kept: list[Any] = engine.optimizer.persistent_parameters
    known, own = {id(parameter) for parameter in kept}, {id(parameter) for parameter in adapter}
    for parameter in engine.module.parameters():
        if id(parameter) not in known and (id(parameter) in own or len(parameter.ds_shape) < 2):
            known.add(id(parameter))
            parameter.ds_persist = True  # type: ignore[attr-defined]
            # Being persistent is not enough: as long as DeepSpeed has not recorded a whole step in one order (answering
            # between two steps makes it start again), a module lets go of all that is not declared to be used outside.
            parameter.is_external_param = True  # type: ignore[attr-defined]
            kept.append(parameter)
    kept[0].all_gather(kept)


# --- trained parameters: whole on every rank; gradients, float32 values and moments in shares


@dataclass(frozen=True)
class Share:
    """This rank's part of one parameter: `count` elements (maybe 0) from `begin` of the flattened parameter.

    They are at `offset` of `master`, the float32 tensor that the optimizer moves (flattened).
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
    """This rank's share of every parameter of a DeepSpeed engine; `entries`: its number in the optimizer's list.

    Stage 0 keeps everything everywhere; stages 1 and 2 cut the flattened parameters of one optimizer entry into equal
    parts, one a rank; stage 3 cuts each parameter.
    """
    zero, rank = engine.optimizer, dist.get_rank()

    def waiting(master: Tensor, offset: int, count: int) -> Tensor:
        """Under offload the gradients wait beside the optimizer's tensor."""
        assert master.grad is not None
        return master.grad.narrow(0, offset, count)

    def everything(parameter: nn.Parameter) -> Share:
        def gradient() -> Tensor:
            assert parameter.grad is not None
            return parameter.grad.view(-1)

        return Share(parameter, parameter, 0, parameter.numel(), 0, gradient)

    def part_of_entry(master: Tensor, parameter: Any) -> Share:
        mapping = parameter._hp_mapping
        if mapping is None:  # it lies in other ranks' parts
            return Share(parameter, master, 0, 0, 0, lambda: master)
        begin, there = mapping.lp_fragment_address.start, mapping.get_hp_fragment_address()

        def gradient() -> Tensor:
            if zero.cpu_offload:
                return waiting(master, there.start, there.numel)
            return mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)

        return Share(parameter, master, begin, there.numel, there.start, gradient)

    def part_of_parameter(parameter: Any) -> Share:
        from deepspeed.utils import safe_get_local_grad

        number, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        master = zero.fp32_partitioned_groups_flat[number]
        begin = min(rank * size, parameter.ds_numel)
        count = min(size, parameter.ds_numel - begin)  # the last parts are filled up

        def gradient() -> Tensor:
            if zero.offload_optimizer:
                return waiting(master, offset, count)
            return safe_get_local_grad(parameter).view(-1)[:count]

        return Share(parameter, master, begin, count, offset, gradient)

    if stage == 0:
        return {name: everything(parameter) for name, parameter in parameters.items()}
    if stage == 3:
        return {name: part_of_parameter(parameter) for name, parameter in parameters.items()}
    masters = zero.single_partition_of_fp32_groups
    return {name: part_of_entry(masters[entries[name]], parameter) for name, parameter in parameters.items()}


def whole_tensors(
    shares: Mapping[str, Share], parts: Mapping[str, Tensor], replicated: bool, device: torch.device
) -> dict[str, Tensor]:
    """The whole tensor of each parameter (on the CPU, on every rank) from the part that each rank has; collective.

    Bits are added as integers, to which only one rank gives something else than 0: -0.0 stays -0.0.
    """
    sizes = [share.parameter.numel() for share in shares.values()]
    together = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
    for (name, share), piece in zip(shares.items(), together.split(sizes), strict=True):
        share.cut(piece).copy_(parts[name])
    if not replicated:
        dist.all_reduce(together.view(torch.int32))
    pieces = zip(shares.items(), together.cpu().split(sizes), strict=True)
    return {name: piece.reshape(share.parameter.shape).clone() for (name, share), piece in pieces}


def write_parameter(share: Share, value: Tensor) -> None:
    """Puts a whole value into a parameter and into every copy that DeepSpeed keeps of it here."""
    write_value(share.parameter, value)
    share.own(share.master.data).copy_(share.cut(value))


def write_value(parameter: Tensor, value: Tensor) -> None:
    """Puts a whole value into a tensor that is whole here; at stage 3 also into this rank's part of it.

    After each step DeepSpeed gathers all that it keeps whole from the parts again.
    """
    parameter.data.copy_(value)
    part = getattr(parameter, "ds_tensor", None)
    if part is not None:
        begin = dist.get_rank() * part.numel()
        own = value.reshape(-1)[begin : begin + part.numel()]
        part.data.view(-1)[: own.numel()].copy_(own)
