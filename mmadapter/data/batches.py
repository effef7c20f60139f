"""Samples of one source as one batch: left padded, or as a forest (forest.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from mmadapter.data.samples import Sample
from mmadapter.data.tokens import Encoded
from mmadapter.hosts.forest import Forest
from mmadapter.vision.features import FeatureStore, PixelReader


@dataclass(frozen=True)
class Batch:
    """Rows of one source, left padded, with the supervised positions listed as (row index, target) pairs.

    With a forest all samples stand in one row of tokens; `images` and `features` are then those of its groups.
    """

    source: str
    input_ids: Tensor
    """(rows, tokens) int64"""
    attention_mask: Tensor
    """(rows, tokens) int64, 1 = real; with a forest the empty mask of hosts/forest.py"""
    rows: Tensor
    """(pairs,) index into the flattened (rows * tokens) hidden states whose logits predict `targets`"""
    targets: Tensor
    """(pairs,) the token to be predicted; only supervised pairs are listed, so it may be empty"""
    pair_sample: Tensor
    """(pairs,) the sample that the pair belongs to, by its place in `samples`"""
    images: tuple[Path | None, ...]
    samples: tuple[Sample, ...]
    features: tuple[Tensor | None, ...] | None = None
    """What the image encoder gives for each row's picture, (features,) or (tokens, features), on the CPU; with
    `vision.cache=false` the pixels (3, height, width) that it reads; None for a row without one. None instead of the
    tuple: not looked up yet, or a model without pictures."""
    filler: bool = False
    """A copy that only keeps this process in step with the others: nothing is learned from it, nothing counted."""
    visual: bool | None = None
    """Whether some process has an image in its part of this micro-batch (None: as this part has)."""
    forest: Forest | None = None
    """How the tokens hang together, where they stand in one row; None: each row is a sample, left padded"""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names = ("input_ids", "attention_mask", "rows", "targets", "pair_sample")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, forest=None if self.forest is None else self.forest.to(device), **moved)

    def with_features(self, store: FeatureStore | PixelReader | None) -> Batch:
        """The same batch with the features of its pictures, from a store; as it is where there is none."""
        return self if store is None else replace(self, features=store.of(self.images))

    @property
    def supervised_tokens(self) -> int:
        """How many tokens the loss is taken over."""
        return 0 if self.filler else int(self.targets.numel())


@dataclass(frozen=True)
class FeaturedBatches(Sequence[Batch]):
    """Batches that get their features when they are asked for: not all have to be in memory at once."""

    batches: Sequence[Batch]
    store: FeatureStore | PixelReader | None

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, place: int) -> Batch: ...

    @overload
    def __getitem__(self, place: slice) -> FeaturedBatches: ...

    def __getitem__(self, place: int | slice) -> Batch | FeaturedBatches:
        if isinstance(place, slice):
            return FeaturedBatches(self.batches[place], self.store)
        return self.batches[place].with_features(self.store)


def make_batch(encoded: Sequence[Encoded], pad_id: int) -> Batch:
    """Pads to the longest of `encoded` on the left and lists the supervised pairs; all must come from one source."""
    source = the_source(encoded)
    width = max(len(item.ids) for item in encoded)
    input_ids = torch.full((len(encoded), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    supervised = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, item in enumerate(encoded):
        start = width - len(item.ids)
        input_ids[row, start:] = torch.frombuffer(item.ids, dtype=torch.int32)
        attention_mask[row, start:] = 1
        for begin, end in item.spans:
            # The first token has no position before it that could predict it.
            supervised[row, start + max(begin, 1) : start + end] = True
    pairs = supervised.flatten().nonzero()[:, 0]
    return Batch(
        source=source,
        input_ids=input_ids,
        attention_mask=attention_mask,
        rows=pairs - 1,
        targets=input_ids.flatten()[pairs],
        pair_sample=pairs // width,
        images=tuple(item.sample.image for item in encoded),
        samples=tuple(item.sample for item in encoded),
    )


def the_source(encoded: Sequence[Encoded]) -> str:
    """The source of samples that make a batch. Raises ValueError where there are several."""
    sources = {item.sample.source for item in encoded}
    if len(sources) != 1:
        raise ValueError(f"a batch holds samples of exactly one source, got {sorted(sources)}")
    return sources.pop()


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, so that a batch holds similar lengths and memory peaks at the start."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
