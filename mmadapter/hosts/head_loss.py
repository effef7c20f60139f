"""Cross-entropy behind a frozen output head, without all logits in memory at the same time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.distributed.deepspeed import is_sharded
from mmadapter.hosts.families import Host

# So many logits are computed at a time (16 MB in float32, 256 MB on a GPU), but at least of so many rows: a product of
# fewer reads the head's weights for little.
AT_ONCE, AT_ONCE_ON_GPU = 2**22, 2**26
FEWEST_ROWS = 128
# What some families do to the logits behind the head, under the names that `transformers` gives it.
BEHIND_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def has_plain_head(host: Host) -> bool:
    """Whether the host's logits are what its head, a frozen linear layer that is here as a whole, makes of the hidden
    states, and nothing more.
    """
    head = host.get_output_embeddings()
    more = [name for name in BEHIND_THE_HEAD if getattr(host.config, name, None) not in (None, 1.0)]
    return type(head) is nn.Linear and not head.weight.requires_grad and not more and not is_sharded(host)


def rows_at_once(words: int, on_gpu: bool) -> int:
    """How many rows have logits at the same time, of so many words each."""
    return max((AT_ONCE_ON_GPU if on_gpu else AT_ONCE) // words, FEWEST_ROWS)


def summed_cross_entropy(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The sum of -log softmax(head(hidden))[target] over all rows, a float32 scalar.

    hidden (rows, width), targets (rows,). The gradient is made with the value, chunk by chunk; `head` has none.
    """
    result: Tensor = _SummedCrossEntropy.apply(hidden, head.weight, head.bias, targets)
    return result


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = rows_at_once(len(weight), hidden.is_cuda)
        for start in range(0, len(hidden), size):
            chunk, own = hidden[start : start + size], targets[start : start + size, None]
            logits = nn.functional.linear(chunk, weight, bias).float()
            chosen = logits.gather(1, own)
            highest = logits.amax(1, keepdim=True)
            sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
            total += (sums.log() + highest - chosen).sum()
            if gradient is not None:  # softmax - one at the target
                logits.div_(sums).scatter_add_(1, own, torch.full_like(sums, -1.0))
                torch.mm(logits.to(weight.dtype), weight, out=gradient[start : start + size])
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        return ctx.gradient * factors[0], None, None, None
