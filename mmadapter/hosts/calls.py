"""What is asked of a host for one call only: logits of some rows, an adapter in each step of `generate`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from mmadapter.hosts.attention import AdapterCall
from mmadapter.hosts.recipes import Host


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
