"""Samples of one source as a forest: what several of them begin with, under the same picture, stands once in the batch.

A row may predict several targets: the first token of five captions of one picture is predicted by the last token of
their instruction. So the supervised positions are (row, target) pairs with repeats.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from mmadapter.data.batches import Batch, the_source
from mmadapter.data.tokens import Encoded
from mmadapter.hosts.forest import Forest, ForestSegment, no_mask

# A beginning is shared where that saves at least so many tokens: a segment more costs an attention call more a layer.
WORTH_SHARING = 8


@dataclass(frozen=True)
class Trees:
    """Sequences of tokens as trees: what several begin with, under the same picture, stands once."""

    tokens: array[int]
    """of all trees, one behind the other"""
    segments: tuple[ForestSegment, ...]
    sizes: dict[Hashable, int]
    """tokens of each picture's trees, in the order in which they stand; None: those without a picture"""
    rows: tuple[list[int], ...]
    """where the tokens of each sequence stand"""

    @property
    def input_ids(self) -> Tensor:
        """(1, tokens)"""
        return torch.frombuffer(self.tokens, dtype=torch.int32).long()[None]

    def forest(self, predicting: Tensor) -> Forest:
        """How the tokens hang together; `predicting` (rows,) are those whose logits are asked for, each once."""
        positions = torch.cat([torch.arange(one.before, one.before + one.length) for one in self.segments])
        return Forest(self.segments, tuple(self.sizes.values()), positions[None], predicting)


def trees_of(sequences: Sequence[array[int]], pictures: Sequence[Hashable]) -> Trees:
    """The trees of sequences, each with its picture or None; an empty sequence has no token in them."""
    groups: dict[Hashable, list[int]] = {}
    for number, picture in enumerate(pictures):
        if sequences[number]:
            groups.setdefault(picture, []).append(number)
    tokens = array("i")
    segments: list[ForestSegment] = []
    sizes: dict[Hashable, int] = {}
    rows: list[list[int]] = [[] for _ in sequences]
    for picture, members in groups.items():
        start = len(tokens)
        its_rows = grow([sequences[number] for number in members], tokens, segments)
        for number, row_of in zip(members, its_rows, strict=True):
            rows[number] = row_of
        sizes[picture] = len(tokens) - start
    return Trees(tokens, tuple(segments), sizes, tuple(rows))


def make_forest_batch(encoded: Sequence[Encoded]) -> Batch:
    """The forest of `encoded`, all of one source, as a batch; its images are those of the forest's groups."""
    # What is behind the last token that predicts teaches nothing.
    sequences = [item.ids[: max((end - 1 for _, end in item.spans), default=0)] for item in encoded]
    if not any(sequences):
        sequences[0] = encoded[0].ids[:1]  # the host runs anyhow
    trees = trees_of(sequences, [item.sample.image for item in encoded])
    pairs = [  # the first token has no row before it that could predict it
        (trees.rows[number][place - 1], item.ids[place], number)
        for number, item in enumerate(encoded)
        for begin, end in item.spans
        for place in range(max(begin, 1), end)
    ]
    rows, targets, pair_sample = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return Batch(
        source=the_source(encoded),
        input_ids=trees.input_ids,
        attention_mask=no_mask(),
        rows=rows.contiguous(),
        targets=targets.contiguous(),
        pair_sample=pair_sample.contiguous(),
        images=tuple(cast("dict[Path | None, int]", trees.sizes)),
        samples=tuple(item.sample for item in encoded),
        forest=trees.forest(rows.unique()),
    )


def grow(sequences: Sequence[array[int]], tokens: array[int], segments: list[ForestSegment]) -> list[list[int]]:
    """Adds the trees of `sequences`, which must not be empty, behind `tokens` and `segments`.

    Returns the row of every token of every sequence.
    """
    # In sorted order a sequence that another one begins with stands in front of such a one, and is on its path.
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    leaves: list[array[int]] = []
    leaf_of: dict[int, int] = {}
    for place, number in enumerate(order):
        own = sequences[number]
        following = sequences[order[place + 1]] if place + 1 < len(order) else array("i")
        leaf_of[number] = len(leaves)
        if following[: len(own)] != own:
            leaves.append(own)

    # Depth first. The first `placed` tokens of leaves[low:high] are the same ones and stand in segments.
    rows_of: list[list[int]] = [[] for _ in leaves]
    waiting: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(leaves), 0, ())]
    while waiting:
        low, high, placed, ancestors = waiting.pop()
        first, last = leaves[low], leaves[high - 1]
        shared = len(first)
        if first is not last:  # sorted, so what these two begin with all begin with
            shared = next(place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
        saved = (high - low - 1) * (shared - placed)
        if high - low == 1 or saved >= WORTH_SHARING:
            begin = len(tokens)
            tokens.extend(first[placed:shared])
            for leaf in range(low, high):
                rows_of[leaf].extend(range(begin, len(tokens)))
            segments.append(ForestSegment(shared - placed, placed, ancestors))
            placed, ancestors = shared, (*ancestors, len(segments) - 1)
        if high - low > 1:
            children = [[*members] for _, members in groupby(range(low, high), key=lambda leaf: leaves[leaf][shared])]
            waiting += [(one[0], one[-1] + 1, placed, ancestors) for one in reversed(children)]
    return [rows_of[leaf_of[number]][: len(own)] for number, own in enumerate(sequences)]
