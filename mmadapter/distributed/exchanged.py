"""How many bytes this rank hands to collectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

IN_PLACE = ("allreduce", "broadcast", "reduce_")  # their first argument is what is given; others take (out, given)


class ExchangedBytes(TorchDispatchMode):
    """Sums up, while inside, the bytes of the tensors given to collectives, whoever calls them (DeepSpeed, we).

    What goes over the wire depends on the backend's algorithm; a ring's all-reduce sends up to twice these bytes.
    """

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "namespace", None) == "c10d":
            name: str = func._schema.name.partition("::")[2]
            given = (
                args[0]
                if (name.startswith(IN_PLACE) and not name.startswith("reduce_scatter")) or len(args) < 2
                else args[1]
            )
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))
