"""A frozen host whose blocks keep the weights of their linear layers in 8 or 4 bits (nf4: QLoRA, Dettmers et al. 2023,
section 3); what trains beside them stays float32.

Only the stored weights are quantised. Products are computed in the type of what comes in, forward and backward: the
host computes what it would with the rounded weights, to rounding errors. Embeddings, norms, the head and whatever
stands outside of the blocks stay as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.hosts.families import Host, decoder_layers

LARGEST_INT8 = 127  # symmetric: -128 is not used
NF4_BLOCK = 64  # neighbouring weights that share a scale, as in QLoRA
NF4_VALUES = 16


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight is stored in few bits: y = W x + b for the rounded weight W.

    It has a gradient for its input and none of its own, and keeps nothing for it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), in the type of `hidden`."""
        product: Tensor = _FrozenProduct.apply(hidden, self)
        return product if self.bias is None else product + self.bias

    def product(self, hidden: Tensor) -> Tensor:
        """W x, (..., outputs)."""
        raise NotImplementedError

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of x, (..., inputs), from that of W x."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.layer.input_gradient(gradients[0]), None


class Int8Linear(QuantizedLinear):
    """Every output's weights as whole numbers from -127 to 127 with one scale: W = scale * values."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(dim=1)
        scale = torch.where(largest > 0, largest / LARGEST_INT8, 1.0)
        self.register_buffer("values", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.values: Tensor
        self.scale: Tensor

    def product(self, hidden: Tensor) -> Tensor:
        # The scale behind the product: whole numbers up to 127 are exact in bfloat16, too.
        return nn.functional.linear(hidden, self.values.to(hidden.dtype)).mul_(self.scale)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return (gradient * self.scale).to(gradient.dtype) @ self.values.to(gradient.dtype)


class Nf4Linear(QuantizedLinear):
    """Every weight as one of 16 values that are equally frequent among normal numbers, times its block's largest one.

    bitsandbytes rounds and gives the weight back, for each product anew.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        count = linear.weight.numel()
        # On a CPU bitsandbytes (0.50) gives back wrong weights where blocks go on from row to row: one row for all.
        whole_blocks = self.in_features % NF4_BLOCK == 0
        self.stored_shape = torch.Size((self.out_features, self.in_features) if whole_blocks else (count,))
        if linear.weight.is_meta:
            packed = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device="meta")
            largest = torch.empty(-(-count // NF4_BLOCK), device="meta")
            code = torch.empty(NF4_VALUES, device="meta")
        else:
            weight = linear.weight.detach().float().reshape(self.stored_shape)
            packed, state = bitsandbytes().quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4")
            largest, code = state.absmax, state.code
        self.register_buffer("packed", packed)
        self.register_buffer("largest", largest)
        self.register_buffer("code", code)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """(outputs, inputs): the rounded weight."""
        library = bitsandbytes()
        state = library.QuantState(
            self.largest, shape=self.stored_shape, code=self.code, blocksize=NF4_BLOCK, quant_type="nf4", dtype=dtype
        )
        weight: Tensor = library.dequantize_4bit(self.packed, state)
        return weight.view(self.out_features, self.in_features)

    def product(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight_in(hidden.dtype))

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return gradient @ self.weight_in(gradient.dtype)


STORED_IN: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "nf4": Nf4Linear}


def quantize(host: Host, kind: str) -> None:
    """Store the weights of all linear layers of the host's blocks in `kind` ("int8", "nf4"), in place.

    On the meta device the stored weights have their sizes only.
    """
    for block in decoder_layers(host):
        for path, linear in list(block.named_modules()):
            if type(linear) is nn.Linear:
                parent, _, name = path.rpartition(".")
                setattr(block.get_submodule(parent), name, STORED_IN[kind](linear))
    for parameter in host.parameters():  # what stays leaves the mapped file, whose pages would be held in memory
        parameter.data = parameter.data.clone()


def quantized_layers(host: nn.Module) -> Iterator[QuantizedLinear]:
    """The linear layers of a host that are stored in few bits."""
    return (module for module in host.modules() if isinstance(module, QuantizedLinear))


def refuse_missing_library(kind: str) -> None:
    """Raises InputError where what stores weights in `kind` is not installed."""
    if kind == "nf4":
        bitsandbytes()


def bitsandbytes() -> Any:
    """The functions of bitsandbytes. Raises InputError where it cannot be used."""
    if (loaded := sys.modules.get("bitsandbytes.functional")) is not None:
        return loaded
    try:
        with _nothing_fetched():
            return importlib.import_module("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"host.quantization=nf4 needs the package bitsandbytes, which cannot be loaded here ({error}). "
            "To fix: pip install 'mmadapter[quant]' (in a checkout: pip install -e .[quant]), or "
            "host.quantization=int8, which needs no package"
        ) from error


@contextlib.contextmanager
def _nothing_fetched() -> Iterator[None]:
    """While inside, the package `kernels` is not found: with it bitsandbytes would fetch programs from the Hub."""
    log = logging.getLogger("bitsandbytes")
    level, kernels = log.level, sys.modules.get("kernels")
    log.setLevel(logging.ERROR)  # it warns that it has not found it
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
