"""The floor: the matrix products that a training step must do, and nothing else.

What must be done is counted without anybody's layout: each distinct beginning of a sequence is one row, however many
samples of the step share it; of the last layer only what the learned positions need, and the head on these alone; the
backward ends at the lowest layer that trains. Prompts' own products (10 rows a layer) are left out. A contender that
stands at 80 % of the floor spends a fifth of its time on something else than these products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig

from bench.case import Case
from mmadapter.data.tokens import Encoded

Segments = list[tuple[int, int]]
"""(own tokens, tokens in front of them) of stretches that one sequence has alone, or that several have in common"""


def segments(sequences: Sequence[Sequence[int]], before: int = 0) -> Segments:
    """The stretches of the tree that the beginnings of sequences form."""
    found: Segments = []
    by_first: dict[int, list[Sequence[int]]] = {}
    for sequence in sequences:
        if sequence:
            by_first.setdefault(sequence[0], []).append(sequence)
    for those in by_first.values():
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*those, strict=False)))
        found.append((shared, before))
        found += segments([sequence[shared:] for sequence in those], before + shared)
    return found


def predicting_rows(step: Sequence[Encoded]) -> int:
    """The distinct beginnings after which a token is learned."""
    return len({tuple(item.ids[:place]) for item in step for begin, end in item.spans for place in range(begin, end)})


class Products:
    """The host's linear layers with random weights, each block with its own, and buffers for what goes in and out."""

    def __init__(self, case: Case, most_rows: int, most_logits: int) -> None:
        config = AutoConfig.from_pretrained(case.host)
        width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.heads, self.kv_heads = heads, config.num_key_value_heads
        self.head_size = size = getattr(config, "head_dim", None) or width // heads
        self.made: dict[str, Any] = {"device": case.device, "dtype": getattr(torch, case.dtype)}

        # The linear layers of a block, (outputs, inputs).
        shapes = {"q": (heads * size, width), "k": (self.kv_heads * size, width), "v": (self.kv_heads * size, width)}
        shapes |= {"o": (width, heads * size), "gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        self.blocks = [
            {name: torch.randn(shape, **self.made) for name, shape in shapes.items()} for _ in range(case.depth)
        ]
        self.head = torch.randn(config.vocab_size, width, **self.made)

        sides = {width, inner, heads * size, self.kv_heads * size}
        self.given, self.taken = ({side: torch.randn(most_rows, side, **self.made) for side in sides} for _ in range(2))
        self.logits = torch.randn(most_logits, config.vocab_size, **self.made)

    def forward(self, weight: Tensor, rows: int) -> None:
        out = self.logits if weight is self.head else self.taken[weight.shape[0]]
        torch.mm(self.given[weight.shape[1]][:rows], weight.t(), out=out[:rows])

    def backward(self, weight: Tensor, rows: int) -> None:
        """The gradient of what goes in; a frozen weight has none."""
        gradient = self.logits if weight is self.head else self.given[weight.shape[0]]
        torch.mm(gradient[:rows], weight, out=self.taken[weight.shape[1]][:rows])


def training(case: Case) -> Callable[[int], dict[str, int]]:
    most = max(sum(len(item.ids) for item in step) for step in case.steps)
    products = Products(case, most, max(map(predicting_rows, case.steps)))
    queries, keys, values = (
        torch.randn(1, count, most, products.head_size, **products.made).requires_grad_()
        for count in (products.heads, products.kv_heads, products.kv_heads)
    )

    def attention(own: int, before: int, with_backward: bool) -> None:
        """A stretch's attention to itself, causal, and to all in front of it."""
        for start, length, causal in ((0, own, True), (own, before, False)):
            if length == 0:
                continue
            with torch.set_grad_enabled(with_backward):
                inputs = queries[:, :, :own], keys[:, :, start : start + length], values[:, :, start : start + length]
                grouped = products.kv_heads != products.heads
                out = scaled_dot_product_attention(*inputs, is_causal=causal, enable_gqa=grouped)
            if with_backward:
                torch.autograd.grad(out, inputs, torch.ones_like(out))

    # The lowest layer that trains, and the highest. Below V1's lowest prompt nothing trains; V2's norms are everywhere.
    lowest, last = case.depth - case.prompt_layers if case.adapter == "v1" else 0, case.depth - 1

    @torch.no_grad()
    def step(number: int) -> dict[str, int]:
        stretches = segments([item.ids[:-1] for item in case.steps[number]])  # the last token feeds nothing
        rows, learned = sum(own for own, _ in stretches), predicting_rows(case.steps[number])
        for layer, block in enumerate(products.blocks):
            for own, before in stretches:
                attention(own, before, layer >= lowest)
            for name, weight in block.items():
                products.forward(weight, learned if layer == last and name not in ("k", "v") else rows)
        products.forward(products.head, learned)
        products.backward(products.head, learned)
        for layer in range(last, lowest - 1, -1):
            for name, weight in products.blocks[layer].items():
                if layer > lowest or case.adapter == "v2" or name not in ("q", "k", "v"):
                    products.backward(weight, learned if layer == last and name not in ("k", "v") else rows)
        return {"rows": rows, "learned": learned}

    return step


def generation(case: Case) -> Callable[[int], None]:
    """Every linear layer once for the prompts' tokens, then once for each further token; the head on one row each."""
    tokens, batch = sum(map(len, case.prompt_ids)), len(case.prompt_ids)
    products = Products(case, tokens, batch)

    @torch.no_grad()
    def answer(number: int) -> None:
        for rows in (tokens, *[batch] * (case.new_tokens - 1)):
            for block in products.blocks:
                for weight in block.values():
                    products.forward(weight, rows)
            products.forward(products.head, batch)

    return answer
