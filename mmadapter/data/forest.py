"""Samples of one source as a forest: what several of them begin with, under the same picture, stands once in the batch.

A row may predict several targets: the first token of five captions of one picture is predicted by the last token of
their instruction. So the supervised positions are (row, target) pairs with repeats.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch

from mmadapter.data.batches import Batch, the_source
from mmadapter.data.tokens import Encoded
from mmadapter.hosts.forest import Forest, ForestSegment, no_mask

# A beginning is shared where that saves at least so many tokens: a segment more costs an attention call more a layer.
WORTH_SHARING = 8


def make_forest_batch(encoded: Sequence[Encoded]) -> Batch:
    """The forest of `encoded`, all of one source, as a batch; its images are those of the forest's groups."""
    # What is behind the last token that predicts teaches nothing.
    sequences = [item.ids[: max((end - 1 for _, end in item.spans), default=0)] for item in encoded]
    if not any(sequences):
        sequences[0] = encoded[0].ids[:1]  # the host runs anyhow
    groups: dict[Path | None, list[int]] = {}
    for number, item in enumerate(encoded):
        if sequences[number]:
            groups.setdefault(item.sample.image, []).append(number)

    tokens = array("i")
    segments: list[ForestSegment] = []
    sizes: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    for members in groups.values():
        start = len(tokens)
        its_rows = grow([sequences[number] for number in members], tokens, segments)
        sizes.append(len(tokens) - start)
        for number, row_of in zip(members, its_rows, strict=True):
            item = encoded[number]
            for begin, end in item.spans:  # the first token has no row before it that could predict it
                pairs += [(row_of[place - 1], item.ids[place], number) for place in range(max(begin, 1), end)]

    positions = torch.cat([torch.arange(one.before, one.before + one.length) for one in segments])
    rows, targets, pair_sample = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return Batch(
        source=the_source(encoded),
        input_ids=torch.frombuffer(tokens, dtype=torch.int32).long()[None],
        attention_mask=no_mask(),
        rows=rows.contiguous(),
        targets=targets.contiguous(),
        pair_sample=pair_sample.contiguous(),
        images=tuple(groups),
        samples=tuple(item.sample for item in encoded),
        forest=Forest(tuple(segments), tuple(sizes), positions[None], rows.unique()),
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
