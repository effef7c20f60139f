"""What one call of a host carries, and how the host's modules learn of it.

While a call runs it stands in the host's CallSlot: `with host.adapter_slot.during(adapter.call()): host(...)`. So
several adapters can share a host, and a host that is called outside of this is the plain host. Activation checkpointing
recomputes with the call of the first time (`CallSlot.carried`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mmadapter.hosts.forest import Forest
from mmadapter.hosts.kv_cache import KeyValueCache

Kept = TypeVar("Kept")
Given = ParamSpec("Given")
Returned = TypeVar("Returned")
Place = tuple[int, str]  # number of the host's layer (from 0), name of a place in it
FINAL = -1  # the layer number of what stands behind the last block
PartsByPlace = Mapping[Place, Sequence[nn.Module]]  # the parts at a place, innermost first
Function = Callable[..., Any]

# Held while a host, an encoder or a tokenizer is at work, by one thread at a time. It is one for the whole process and
# not one for each host: sampling sets torch's random numbers and loading sets torch's default type, and all threads
# share these.
AT_WORK = threading.RLock()


def one_thread_at_a_time(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """`function`, which waits while another thread is inside of one that is marked so. It may call others."""

    @wraps(function)
    def alone(*given: Given.args, **named: Given.kwargs) -> Returned:
        with AT_WORK:
            return function(*given, **named)

    return alone


@dataclass(frozen=True)
class VisualTokens:
    """What the visual projection made of a batch's images."""

    tokens: Tensor
    """(rows, tokens, width); zero for a row without an image"""
    present: Tensor
    """(rows,) bool: the row has an image"""


@dataclass
class AdapterCall:
    """What one call of the host carries: an adapter's parts, and the rows' images (None: no row has one).

    `fused`: the visual tokens enter through a method of their own (V2, early fusion), so prompts leave them alone.
    `forest`: how the tokens of the one row hang together (None: rows of their own, as the mask says).
    `cache`: what earlier calls have kept of the rows (None: the host's own way; see decoding.py).
    `keep` allows that what a part computes from its parameters alone is kept from one forward to the next (generation).
    """

    parts: PartsByPlace
    visual: VisualTokens | None = None
    fused: bool = False
    keep: bool = False
    forest: Forest | None = None
    cache: KeyValueCache | None = None
    kept: dict[nn.Module, tuple[tuple[int, int], Any]] = field(default_factory=dict)

    def once(self, part: nn.Module, source: Tensor, make: Callable[[], Kept]) -> Kept:
        """What `make` computes from `source` for `part`.

        It is computed again as soon as `source` is another tensor or has been written to, and always in training.
        """
        if torch.is_grad_enabled():
            return make()
        # `torch.inference_mode` does not count writes.
        state = (source.data_ptr(), 0 if source.is_inference() else source._version)
        if part in self.kept and self.kept[part][0] == state:
            return self.kept[part][1]
        made = make()
        if self.keep:
            self.kept[part] = (state, made)
        return made


class CallSlot:
    """The calls that are in work on one host, innermost last; without any, no part acts.

    All threads see the same calls: who uses a slot by hand from several threads holds `AT_WORK`, as AdaptedModel does.
    """

    def __init__(self) -> None:
        self.calls = [AdapterCall({})]

    @contextlib.contextmanager
    def during(self, call: AdapterCall | None) -> Iterator[None]:
        """While inside, the host's modules act with the parts of `call`; None: as without an adapter."""
        self.calls.append(call or AdapterCall({}))
        try:
            yield
        finally:
            self.calls.pop()

    def around(self, place: Place, base: Function) -> Function:
        """`base` with the parts around it that the present call has for `place`."""
        for part in self.calls[-1].parts.get(place, ()):
            base = partial(part, base)
        return base

    def carried(self, function: Function) -> Function:
        """`function`, which will see the present call whenever it is run."""
        call = self.calls[-1]

        def run(*inputs: Any) -> Any:
            with AT_WORK, self.during(call):  # the backward of a GPU runs in a thread of its own
                return function(*inputs)

        return run


class AdaptedModule(nn.Module):
    """A frozen module of the host (`base`), and around it the parts that the present call has for its place.

    A part is called as part(base, hidden), where `base` is a function: the frozen module, or the frozen module with
    earlier parts around it. Where the call has none, it is the base, to the bit.
    """

    def __init__(self, base: nn.Module, slot: CallSlot, place: Place) -> None:
        super().__init__()
        self.base = base
        self.slot, self.place = slot, place

    def forward(self, hidden: Tensor) -> Tensor:
        return self.slot.around(self.place, self.base)(hidden)

    def __getattr__(self, name: str) -> Any:
        """What a model file reads of its own module (weight, in_features, ...) is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def feed_predicting_rows(feed_forward: nn.Module, slot: CallSlot) -> None:
    """Let the last block's feed-forward module see only those tokens of a forest that predict one.

    What it would add to the others is read by nobody; they get zeros.
    """

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        forest = slot.calls[-1].forest
        return None if forest is None else (inputs[0].index_select(1, forest.predicting), *inputs[1:])

    def put_back(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        forest = slot.calls[-1].forest
        if forest is None:
            return None
        return output.new_zeros(1, forest.tokens, output.shape[-1]).index_copy(1, forest.predicting, output)

    feed_forward.register_forward_pre_hook(pick)
    feed_forward.register_forward_hook(put_back)


@contextlib.contextmanager
def head_on_rows(head: nn.Module, rows: Tensor) -> Iterator[None]:
    """Let the output head see only `rows` of the flattened (batch * tokens) hidden states, as one row of tokens.

    The head's own forward and whatever the family does to its logits (scale, cap) stay as they are.
    """

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        return (hidden.reshape(1, -1, hidden.shape[-1]).index_select(1, rows.to(hidden.device)), *inputs[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
