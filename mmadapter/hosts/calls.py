"""What one call of a host carries, and how the host's modules learn of it.

The adapter of a call arrives as the keyword `adapter` of that call, never as state on the modules: activation
checkpointing recomputes with it, several adapters can share a host, and a host called without it is the plain host.
Attention modules get the keyword itself; other modules, which get no keywords, read it from the host's CallSlot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmadapter.hosts.families import Host

Kept = TypeVar("Kept")
Place = tuple[int, str]  # number of the host's layer (from 0), name of a place in it
FINAL = -1  # the layer number of what stands behind the last block
PartsByPlace = Mapping[Place, Sequence[nn.Module]]  # the parts at a place, innermost first


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
    `keep` allows that what a part computes from its parameters alone is kept from one forward to the next (generation).
    """

    parts: PartsByPlace
    visual: VisualTokens | None = None
    fused: bool = False
    keep: bool = False
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
    """The calls that are in work on one host, innermost last; None is a call without an adapter.

    Hooks on the host fill it from the keyword `adapter`. Activation checkpointing, which runs a layer again outside of
    the host's forward, fills it anew with the call of the first time.
    """

    def __init__(self) -> None:
        self.calls: list[AdapterCall | None] = []
        self.watching = False

    @property
    def call(self) -> AdapterCall | None:
        """The innermost call."""
        return self.calls[-1] if self.calls else None

    @contextlib.contextmanager
    def during(self, call: AdapterCall | None) -> Iterator[None]:
        """While inside, `call` is the innermost one; None: the frozen modules act as without an adapter."""
        self.calls.append(call)
        try:
            yield
        finally:
            self.calls.pop()

    def carried(self, function: Callable) -> Callable:
        """`function`, which will see the present call whenever it is run."""
        call = self.call

        def run(*inputs: Any) -> Any:
            with self.during(call):
                return function(*inputs)

        return run

    def watch(self, host: nn.Module) -> None:
        """Note the keyword `adapter` of each call of `host` as long as it lasts."""
        if not self.watching:
            host.register_forward_pre_hook(self._enter, with_kwargs=True)
            host.register_forward_hook(self._leave, always_call=True)
            self.watching = True

    def _enter(self, _: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        self.calls.append(keywords.get("adapter"))

    def _leave(self, *_: Any) -> None:
        self.calls.pop()


def call_slot(host: Host) -> CallSlot:
    """The host's slot, made at the first time."""
    if not hasattr(host, "adapter_slot"):
        host.adapter_slot = CallSlot()
    return host.adapter_slot


class AdaptedModule(nn.Module):
    """A frozen module of the host (`base`), and around it the parts that the current call has for its place.

    A part is called as part(base, hidden), where `base` is a function: the frozen module, or the frozen module with
    earlier parts around it. Without a call that carries an adapter it is the base, to the bit.
    """

    def __init__(self, base: nn.Module, slot: CallSlot, place: Place) -> None:
        super().__init__()
        self.base = base
        self.slot, self.place = slot, place

    def forward(self, hidden: Tensor) -> Tensor:
        call = self.slot.call
        function: Callable[[Tensor], Tensor] = self.base
        for part in () if call is None else call.parts.get(self.place, ()):
            function = partial(part, function)
        return function(hidden)

    def __getattr__(self, name: str) -> Any:
        """What a model file reads of its own module (weight, in_features, ...) is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


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


@contextlib.contextmanager
def adapter_in_each_call(host: Host, call: AdapterCall) -> Iterator[None]:
    """Add `adapter=call` to each forward of the host: its `generate` refuses keywords that it does not know."""

    def add(_: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**keywords, "adapter": call}

    handle = host.register_forward_pre_hook(add, with_kwargs=True, prepend=True)  # before whatever reads the keyword
    try:
        yield
    finally:
        handle.remove()
