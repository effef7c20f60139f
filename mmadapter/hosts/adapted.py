"""Frozen modules of a host with an adapter's trained parts around them, active only in calls that carry the adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from mmadapter.adapters.adapter import Adapter
from mmadapter.hosts.places import linear_places, norm_places
from mmadapter.hosts.recipes import Host


class CallSlot:
    """The calls that are in work on one host, innermost last; None is a call without an adapter.

    Filled by hooks on the host from the keyword `adapter`; activation checkpointing, which runs a layer again outside
    of the host's forward, fills it anew with the call of the first time.
    """

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.watching = False

    @property
    def adapter(self) -> Adapter | None:
        """The adapter of the innermost call."""
        call = self.calls[-1] if self.calls else None
        return None if call is None else call.adapter

    @contextlib.contextmanager
    def during(self, call: Any) -> Iterator[None]:
        """While inside, `call` is the innermost one; None: the frozen modules act as without an adapter."""
        self.calls.append(call)
        try:
            yield
        finally:
            self.calls.pop()

    def carried(self, function: Callable) -> Callable:
        """`function`, which will see the present call whenever it is run."""
        call = self.calls[-1] if self.calls else None

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


class AdaptedModule(nn.Module):
    """A frozen linear layer or norm (`base`), and what the adapter of the current call has for its place.

    Without such a call it is the base, to the bit: LoRA deltas, which live inside a linear base, are left out too.
    """

    def __init__(self, base: nn.Module, slot: CallSlot, family: str, index: int, kind: str) -> None:
        super().__init__()
        self.base = base
        self.slot, self.family, self.index, self.kind = slot, family, index, kind

    def forward(self, hidden: Tensor) -> Tensor:
        adapter = self.slot.adapter
        base: Any = self.base
        with_lora = adapter is not None and adapter.part("lora", self.index, self.kind) is not None
        if hasattr(base, "base_layer") and not with_lora:
            base = base.base_layer
        part = None if adapter is None else adapter.part(self.family, self.index, self.kind)
        return base(hidden) if part is None else part(base, hidden)

    def __getattr__(self, name: str) -> Any:
        """What a model file reads of its own module (weight, in_features, ...) is the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def attach(host: Host, adapter: Adapter) -> None:
    """Put an AdaptedModule around every module of `host` for which `adapter` has a part; idempotent."""
    slot = call_slot(host)
    linears, norms = linear_places(host), norm_places(host, final=True)
    places = [(linears[index][kind], "linears", index, kind) for index, kind in _adapted_linears(adapter)]
    places += [(norms[index][kind], "norms", index, kind) for index, kind in _named(adapter.norms)]
    for place, family, index, kind in places:
        if not isinstance(place.module, AdaptedModule):
            place.put(AdaptedModule(place.module, slot, family, index, kind))
    if places:
        slot.watch(host)


def call_slot(host: Host) -> CallSlot:
    """The host's slot, made at the first time."""
    if not hasattr(host, "adapter_slot"):
        host.adapter_slot = CallSlot()
    return host.adapter_slot


def _adapted_linears(adapter: Adapter) -> list[tuple[int, str]]:
    return sorted({*_named(adapter.linears), *_named(adapter.lora)})


def _named(parts: nn.ModuleDict) -> list[tuple[int, str]]:
    return [(int(index), kind) for index, kinds in parts.items() for kind in kinds]  # type: ignore[attr-defined]
