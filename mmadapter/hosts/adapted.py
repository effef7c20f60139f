"""Frozen modules of a host with an adapter's trained parts around them, active only in calls that carry the adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from mmadapter.adapters.adapter import Adapter
from mmadapter.hosts.places import linear_places, norm_places
from mmadapter.hosts.recipes import Host, decoder_layers


class CallSlot:
    """The calls that are in work on one host, innermost last; None is a call without an adapter.

    Filled by hooks on the host and on each decoder layer from the keyword `adapter`. The layers' hooks are for
    activation checkpointing, which runs a layer again, with the keywords of the first time, outside the host's forward.
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
    def plain(self) -> Iterator[None]:
        """While inside, the frozen modules act as they are without an adapter."""
        self.calls.append(None)
        try:
            yield
        finally:
            self.calls.pop()

    def watch(self, module: nn.Module) -> None:
        """Note the keyword `adapter` of each call of `module` as long as it lasts."""
        module.register_forward_pre_hook(self._enter, with_kwargs=True)
        module.register_forward_hook(self._leave, always_call=True)

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
    if places and not slot.watching:
        for module in (host, *decoder_layers(host)):
            slot.watch(module)
        slot.watching = True


def call_slot(host: Host) -> CallSlot:
    """The host's slot, made at the first time."""
    if not hasattr(host, "adapter_slot"):
        host.adapter_slot = CallSlot()
    return host.adapter_slot


def _adapted_linears(adapter: Adapter) -> list[tuple[int, str]]:
    return sorted({*_named(adapter.linears), *_named(adapter.lora)})


def _named(parts: nn.ModuleDict) -> list[tuple[int, str]]:
    return [(int(index), kind) for index, kinds in parts.items() for kind in kinds]  # type: ignore[attr-defined]
